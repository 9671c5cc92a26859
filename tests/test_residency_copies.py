"""Models that wait in host memory, and what is done when memory runs out all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import OutOfMemory
from app.domain.events import ImageFinished, PhaseStarted, StepFinished
from app.workers.budget import Budget
from app.workers.wire import Held
from tests.paper_models import paper_model
from tests.stub_engines import Parking, Stub, house

# -- copies in host memory -------------------------------------------------------------------------


def test_a_model_that_left_a_gpu_returns_without_loading(tmp_path: Path) -> None:
    a, b = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    budget = Budget(max_vram=100_000_000, max_ram=200_000_000)
    with house(budget, Parking, "cuda") as built:
        for card in (a, b, a):
            built.run(card)
        assert built.held[-1] == Held(("a",), ("b",), 60_000_000)
        assert [line for line in built.log if not line.startswith("draw")] == [
            *("load a", "park a", "load b", "park b", "unpark a")
        ]


def test_copies_beyond_the_budget_go_the_oldest_first(tmp_path: Path) -> None:
    a, b, c = (paper_model(tmp_path, name, 60) for name in ("a", "b", "c"))
    budget = Budget(max_vram=100_000_000, max_ram=70_000_000)
    with house(budget, Parking, "cuda") as built:
        for card in (a, b, c):
            built.run(card)
        assert built.held[-1] == Held(("c",), ("b",), 60_000_000)
        assert built.loads("a") == 1
        built.run(a)
        assert built.loads("a") == 2


def test_a_model_too_large_for_a_copy_is_let_go_and_the_others_keep_theirs(tmp_path: Path) -> None:
    a, large, b = (
        paper_model(tmp_path, name, size) for name, size in (("a", 50), ("large", 90), ("b", 20))
    )
    budget = Budget(max_vram=100_000_000, max_ram=70_000_000)
    with house(budget, Parking, "cuda") as built:
        for card in (a, large, b):
            built.run(card)
        assert built.held[-1] == Held(("b",), ("a",), 20_000_000)


@pytest.mark.parametrize("megabytes", [60, 0])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_where_the_device_is_the_host_nothing_is_parked(
    tmp_path: Path, device: str, megabytes: int
) -> None:
    a, b = (paper_model(tmp_path, name, megabytes) for name in ("a", "b"))
    with house(Budget(max_models=1), Parking, device) as built:
        built.run(a)
        built.run(b)
        assert built.held[-1] == Held(("b",), (), megabytes * 1_000_000)


def test_one_that_cannot_return_is_loaded_anew(tmp_path: Path) -> None:
    class Stuck(Parking):
        def unpark(self) -> None:
            raise RuntimeError("lost on the way")

    a, b = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    with house(Budget(max_vram=100_000_000), Stuck, "cuda") as built:
        for card in (a, b, a):
            assert isinstance(built.run(card)[-1], ImageFinished)
        assert built.loads("a") == 2
        assert "unload a" in built.log


@pytest.mark.parametrize("times", [1, 2])
def test_one_that_finds_no_room_to_return_tries_again_with_the_idle_models_gone(
    tmp_path: Path, times: int
) -> None:
    shortages = [OutOfMemory("No room.")] * times

    class Crowded(Parking):
        def unpark(self) -> None:
            self.note("unpark")
            if shortages:
                raise shortages.pop()

    a, b, small = (
        paper_model(tmp_path, name, size) for name, size in (("a", 60), ("b", 60), ("c", 1))
    )
    with house(Budget(max_vram=100_000_000), Crowded, "cuda") as built:
        for card in (a, b, small):
            built.run(card)
        if times == 1:
            assert isinstance(built.run(a)[-1], ImageFinished)
            assert built.held[-1] == Held(("a",), ("b", "c"), 60_000_000)
            assert built.loads("a") == 1
        else:
            with pytest.raises(OutOfMemory, match="No room"):
                built.run(a)
            assert built.held[-1] == Held((), ("b", "c"), 0)
            assert built.log[-1] == "unload a"


# -- out of memory ---------------------------------------------------------------------------------


def test_a_load_without_room_is_tried_once_more_with_the_idle_models_gone(tmp_path: Path) -> None:
    a, b = (paper_model(tmp_path, name, 1) for name in ("a", "b"))
    shortages = [OutOfMemory("No room.")]

    def short(engine: Stub) -> None:
        engine.load_errors += shortages[:1]
        shortages.clear()

    with house() as built:
        built.run(a)
        built.prepare["b"] = short
        assert isinstance(built.run(b)[-1], ImageFinished)
        assert built.models() == ("b",)


def test_a_load_without_room_and_nothing_to_clear_fails_at_once(tmp_path: Path) -> None:
    with house() as built:
        built.prepare["a"] = lambda engine: engine.load_errors.append(OutOfMemory("No room."))
        with pytest.raises(OutOfMemory, match="No room"):
            built.run(paper_model(tmp_path, "a", 1))
        assert built.loads("a") == 1
        assert built.held[-1] == Held((), (), 0)


def test_a_run_out_of_memory_is_tried_once_more_without_the_idle_models_and_tells_nothing_twice(
    tmp_path: Path,
) -> None:
    card, other = paper_model(tmp_path, "a", 1), paper_model(tmp_path, "b", 1)
    with house() as built:
        built.host.load(other)
        built.prepare["a"] = lambda engine: engine.draw_errors.append(OutOfMemory("Full."))
        events = built.run(card)
        assert built.log[-3:] == ["draw x4 a", "unload b", "draw x1 a"]
        assert [event for event in events if isinstance(event, PhaseStarted)] == [
            PhaseStarted("initializing"),
            PhaseStarted("loading_model"),
            PhaseStarted("preparing"),
            PhaseStarted("generating", 2),
        ]
        assert [event.step for event in events if isinstance(event, StepFinished)] == [1, 2]
        assert len([event for event in events if isinstance(event, ImageFinished)]) == 1


def test_a_run_that_cannot_be_given_more_room_fails_and_the_next_is_drawn(tmp_path: Path) -> None:
    card, other = paper_model(tmp_path, "a", 1), paper_model(tmp_path, "b", 1)
    with house() as built:
        built.prepare["a"] = lambda engine: engine.draw_errors.extend(
            [OutOfMemory("Full."), OutOfMemory("Still."), OutOfMemory("Even so.")]
        )
        # A model in use stays.
        with built.drawing(other), pytest.raises(OutOfMemory, match="Full"):
            built.run(card)
        with pytest.raises(OutOfMemory, match="Even so"):
            built.run(card)
        assert isinstance(built.run(card)[-1], ImageFinished)
        assert built.loads("a") == 1
