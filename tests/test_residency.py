"""Models within a budget: who is loaded, who waits, who goes. Asked of the host alone, with engines
that do as they are told; `test_residency_live.py` asks real worker processes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from app.domain.errors import Cancelled, ModelUnavailable, OutOfMemory
from app.domain.events import ImageFinished
from app.workers import residency
from app.workers.budget import Budget
from app.workers.wire import Held
from tests.paper_models import paper_model
from tests.stub_engines import Stub, held_back, house, until

# -- loading ---------------------------------------------------------------------------------------


def test_runs_of_one_model_at_once_load_it_once(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a")
    with house() as built:
        built.prepare["a"] = held_back
        runs = [built.start(card) for _ in range(4)]
        until(lambda: built.loads("a"))
        time.sleep(0.1)
        built.engines["a"].go_on.set()
        for run in runs:
            assert isinstance(run.result(10)[-1], ImageFinished)
        assert built.loads("a") == 1


def test_others_draw_while_a_model_is_loading(tmp_path: Path) -> None:
    slow, quick = paper_model(tmp_path, "slow"), paper_model(tmp_path, "quick")
    with house() as built:
        built.host.load(quick)
        built.prepare["slow"] = held_back
        waiting = built.start(slow)
        until(lambda: built.loads("slow"))
        assert isinstance(built.start(quick).result(5)[-1], ImageFinished)
        assert not waiting.done()
        built.host.unload("quick")
        assert built.models() == ()


def test_one_who_waits_for_a_load_can_leave_and_the_load_goes_on(tmp_path: Path) -> None:
    card, cancelled = paper_model(tmp_path, "a"), threading.Event()
    with house() as built:
        built.prepare["a"] = held_back
        leaving, staying = built.start(card, cancelled), built.start(card)
        until(lambda: built.loads("a"))
        cancelled.set()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            leaving.result(10)
        assert time.monotonic() - began < 0.2
        built.engines["a"].go_on.set()
        assert isinstance(staying.result(10)[-1], ImageFinished)
        assert built.loads("a") == 1


def test_a_load_that_all_have_left_ends_well_and_its_model_can_go(tmp_path: Path) -> None:
    card, cancelled = paper_model(tmp_path, "a"), threading.Event()
    with house() as built:
        built.prepare["a"] = held_back
        leaving = built.start(card, cancelled)
        until(lambda: built.loads("a"))
        cancelled.set()
        with pytest.raises(Cancelled):
            leaving.result(10)
        built.engines["a"].go_on.set()
        until(lambda: built.models() == ("a",))
        built.host.unload("a")
        assert built.models() == ()


def test_a_load_that_fails_fails_for_all_who_wait_and_leaves_nothing(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a", 3)

    def broken(engine: Stub) -> None:
        engine.go_on.clear()
        engine.load_errors.append(ModelUnavailable("The weights of model a cannot be loaded."))

    with house() as built:
        built.prepare["a"] = broken
        runs = [built.start(card) for _ in range(3)]
        until(lambda: built.loads("a"))
        time.sleep(0.1)
        built.engines["a"].go_on.set()
        for run in runs:
            with pytest.raises(ModelUnavailable, match="cannot be loaded"):
                run.result(10)
        assert built.loads("a") == 1
        assert built.held[-1] == Held((), (), 0)


def test_a_model_that_failed_is_not_tried_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_FIRST_PAUSE", 0.4)
    card = paper_model(tmp_path, "a")
    with house() as built:
        built.prepare["a"] = lambda engine: engine.load_errors.append(ModelUnavailable("No."))
        for _ in range(3):
            with pytest.raises(ModelUnavailable, match="No"):
                built.run(card)
        assert built.loads("a") == 1
        time.sleep(0.4)
        with pytest.raises(ModelUnavailable, match="No"):
            built.run(card)
        assert built.loads("a") == 2
        time.sleep(0.5)  # the pauses grow
        built.prepare.clear()
        with pytest.raises(ModelUnavailable, match="No"):
            built.run(card)
        time.sleep(0.4)
        assert isinstance(built.run(card)[-1], ImageFinished)


def test_a_foreign_error_while_loading_is_told_in_our_own_words(tmp_path: Path) -> None:
    with house() as built:
        built.prepare["a"] = lambda engine: engine.load_errors.append(KeyError("/secret/path"))
        with pytest.raises(ModelUnavailable) as caught:
            built.run(paper_model(tmp_path, "a"))
        assert "secret" not in caught.value.message


# -- room ------------------------------------------------------------------------------------------


def test_two_models_take_turns_in_a_room_for_one(tmp_path: Path) -> None:
    cards = [paper_model(tmp_path, name, 60) for name in ("a", "b")]
    with house(Budget(max_vram=100_000_000)) as built:
        for card in (*cards, *cards):
            assert isinstance(built.run(card)[-1], ImageFinished)
            assert built.models() == (card.id,)
            assert built.held[-1].used == 60_000_000
        loading = [line for line in built.log if not line.startswith("draw")]
        assert loading == [
            *("load a", "unload a", "load b", "unload b", "load a", "unload a", "load b")
        ]


def test_what_a_model_came_to_take_while_it_drew_counts(tmp_path: Path) -> None:
    """LoRAs that a request brought stay with the model for a while."""
    one, other = paper_model(tmp_path, "a", 40), paper_model(tmp_path, "b", 40)
    with house(Budget(max_vram=100_000_000)) as built:
        built.run(one)
        built.run(other)
        assert built.models() == ("a", "b")
        built.engines["a"].memory = 70_000_000
        built.run(one)
        assert built.held[-1].used == 110_000_000
        built.run(paper_model(tmp_path, "c", 5))
        assert built.models() == ("a", "c")


def test_only_as_many_go_as_must_and_the_one_used_least_recently_first(tmp_path: Path) -> None:
    small = [paper_model(tmp_path, name, 20) for name in ("a", "b", "c", "d")]
    with house(Budget(max_vram=100_000_000)) as built:
        for card in (*small, small[0]):
            built.host.load(card)
        built.run(paper_model(tmp_path, "big", 55))
        assert built.models() == ("d", "a", "big")


def test_a_small_model_that_is_not_in_the_way_stays(tmp_path: Path) -> None:
    sizes = {"small": 5, "large": 60, "next": 60}
    small, large, following = (paper_model(tmp_path, name, size) for name, size in sizes.items())
    with house(Budget(max_vram=100_000_000)) as built:
        for card in (small, large, following):
            built.host.load(card)
        assert built.models() == ("small", "next")


def test_a_model_that_can_never_fit_is_refused_with_its_size(tmp_path: Path) -> None:
    resident, giant = paper_model(tmp_path, "a", 60), paper_model(tmp_path, "giant", 2500)
    with house(Budget(max_vram=1_000_000_000)) as built:
        built.host.load(resident)
        with pytest.raises(OutOfMemory) as caught:
            built.run(giant)
        assert caught.value.message == (
            "Model giant needs 2.5 GB, and the device has room for 1.0 GB."
        )
        assert built.models() == ("a",)
        assert built.loads("giant") == 0


def test_a_pinned_model_stays_and_what_does_not_fit_beside_it_is_refused(tmp_path: Path) -> None:
    pinned, large = paper_model(tmp_path, "a", 60), paper_model(tmp_path, "large", 90)
    small = [paper_model(tmp_path, name, 30) for name in ("b", "c")]
    with house(Budget(max_vram=100_000_000, pinned=("a",))) as built:
        built.run(pinned)
        for card in small:
            built.run(card)
            assert built.models() == ("a", card.id)
        with pytest.raises(OutOfMemory, match=r"needs 0\.1 GB.* 0\.040 GB beside"):
            built.run(large)


def test_a_room_full_of_busy_models_is_waited_for(tmp_path: Path) -> None:
    busy, next_one = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    cancelled = threading.Event()
    with house(Budget(max_vram=100_000_000)) as built:
        with built.drawing(busy):
            waiting, leaving = built.start(next_one), built.start(next_one, cancelled)
            time.sleep(0.2)
            assert not waiting.done()
            assert built.loads("b") == 0
            cancelled.set()
            with pytest.raises(Cancelled):
                leaving.result(0.5)
        assert isinstance(waiting.result(10)[-1], ImageFinished)
        assert built.models() == ("b",)


def test_one_who_has_waited_long_for_room_has_it_before_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_PATIENCE", 0.1)
    busy, next_one = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    with house(Budget(max_vram=100_000_000)) as built:
        with built.drawing(busy):
            waiting = built.start(next_one)
            time.sleep(0.3)
            newcomer = built.start(busy)
            time.sleep(0.2)
            assert built.log.count("draw x4 a") == 1
        waiting.result(10)
        newcomer.result(10)
        order = [line for line in built.log if line.startswith("draw")]
        assert order == ["draw x4 a", "draw x4 b", "draw x4 a"]


def test_nobody_is_held_up_any_more_once_the_one_who_waited_long_has_his_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_PATIENCE", 0.1)
    busy, next_one = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    other = paper_model(tmp_path, "other", 1)
    with house(Budget(max_vram=100_000_000)) as built:
        built.host.load(other)
        built.prepare["b"] = held_back
        with built.drawing(busy):
            waiting = built.start(next_one)
            time.sleep(0.3)
        until(lambda: built.loads("b"))
        assert isinstance(built.start(other).result(2)[-1], ImageFinished)
        assert not waiting.done()


def test_a_model_nobody_used_for_a_while_goes_and_a_pinned_one_stays(tmp_path: Path) -> None:
    cards = [paper_model(tmp_path, name) for name in ("a", "b")]
    with house(Budget(model_ttl=0.3, pinned=("a",))) as built:
        for card in cards:
            built.run(card)
        with built.drawing(cards[1]):
            time.sleep(0.5)
            assert built.models() == ("a", "b")
        until(lambda: built.models() == ("a",))
        time.sleep(0.4)
        assert built.models() == ("a",)


def test_a_busy_model_that_is_to_go_goes_when_it_is_idle(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a")
    with house() as built:
        with built.drawing(card):
            built.host.unload("a")
            assert built.models() == ("a",)
        until(lambda: built.models() == ())
        assert built.log[-1] == "unload a"


def test_the_real_size_counts_once_it_is_known(tmp_path: Path) -> None:
    def heavy(engine: Stub) -> None:
        engine.memory = 70_000_000

    with house(Budget(max_vram=100_000_000)) as built:
        built.prepare["a"] = heavy
        built.run(paper_model(tmp_path, "a", 20))
        assert built.held[-1].used == 70_000_000
        built.run(paper_model(tmp_path, "b", 60))
        assert built.models() == ("b",)
