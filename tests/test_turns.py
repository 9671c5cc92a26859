"""Models of which only parts, or layers, are on the device at once draw what whole ones draw.

The device is the CPU here: what moves, moves between two places of the same memory, by the same code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.errors import OutOfMemory
from app.domain.memory_plan import NO_LIMIT, STAYS, Plan, Room
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.engines import diffusers_engine, turns, weights
from app.engines.base import ALONE, Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.fitting import bytes_needed, plan_for, plan_told
from app.engines.host_copy import HostCopy
from app.engines.image_codec import Pixels
from app.engines.turns import PartsInTurn
from app.engines.turnstile import Turnstile
from app.engines.weight_bytes import weight_bytes, weight_counts
from app.settings import load_cards
from app.workers.budget import Budget
from app.workers.engine_host import engine_for
from app.workers.residency import Residency
from tests import zoo
from tests.kinds import KINDS, MASK, PICTURE, SIDE, card_of, save
from tests.painter import pictures, png

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo.forget()
    return tmp_path_factory.mktemp("turns")


@pytest.fixture(autouse=True)
def _aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    load = weights.load_pipeline

    def loaded_anew(*args: Any, **named: Any) -> Any:
        return zoo.aligned(load(*args, **named))

    monkeypatch.setattr(diffusers_engine, "load_pipeline", loaded_anew)


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def card(house: Path, name: str) -> ModelCard:
    if not (house / name).exists():
        save(KINDS[name], house / name)
        (house / f"{name}.toml").write_text(card_of(name, KINDS[name], house / name))
    return load_cards(house)[name]


def plan(residency: Any, *, tiled: bool = False) -> Plan:
    return Plan(residency, "float32", tiled, vram=1000, ram=0, working=0)


def loaded(
    wanted: ModelCard, way: Plan | None, monkeypatch: pytest.MonkeyPatch, room: Room = NO_LIMIT
) -> DiffusersEngine:
    monkeypatch.setattr(diffusers_engine, "plan_for", lambda *_: way)
    # Where others overlap their work with the device's, these must not; whole, all in one thread, since
    # the number of threads changes the last bits.
    engine = engine_for(wanted, Turnstile(overlap=way is not None), room)
    assert isinstance(engine, DiffusersEngine)
    engine.load(wanted, "cpu")
    return engine


def draw(engine: DiffusersEngine, wanted: ModelCard, seed: int, sharing: Sharing = ALONE) -> Pixels:
    kind = KINDS[wanted.id]
    task = next(iter(kind.tasks))
    given: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 3}
    if task != "text2image":
        given |= {"image": png(np.asarray(PICTURE)), "strength": 1.0}
    if task == "inpaint":
        given["mask_image"] = png(np.asarray(MASK))
    request = wanted.resolve(
        Arguments(prompt="fox" * (seed + 1), seed=seed, width=SIDE, height=SIDE, **given),
        draw_seed=lambda: 0,
    )
    events: list[Any] = []
    engine.generate(request, events.append, sharing)
    (picture,) = pictures(events)
    return picture


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "fill", "klein"])
@pytest.mark.parametrize("residency", ["model_offload", "group_offload"])
def test_the_picture_is_that_of_the_whole_model(
    house: Path, name: str, residency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = card(house, name)
    whole = draw(loaded(wanted, None, monkeypatch), wanted, 3)
    engine = loaded(wanted, plan(residency), monkeypatch)
    for _ in range(2):
        assert (draw(engine, wanted, 3) == whole).all()
    engine.park()
    engine.unpark()
    assert (draw(engine, wanted, 3) == whole).all()
    engine.unload()


def test_one_part_is_there_at_a_time_and_more_where_there_is_room(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = card(house, "sd")
    seen: list[tuple[str, ...]] = []
    bring = PartsInTurn.bring

    def watched(self: PartsInTurn, name: str) -> None:
        bring(self, name)
        assert self.here[-1] == name
        seen.append(tuple(self.here))

    monkeypatch.setattr(turns.PartsInTurn, "bring", watched)
    draw(loaded(wanted, plan("model_offload"), monkeypatch), wanted, 1)
    assert {len(here) for here in seen} == {1}
    assert {name for here in seen for name in here} == {"text_encoder", "unet"}
    assert STAYS not in {name for here in seen for name in here}
    seen.clear()
    room = Room(10**9, 10**9)
    engine = loaded(wanted, plan("model_offload"), monkeypatch, room)
    draw(engine, wanted, 1)
    assert seen[-1] == ("text_encoder", "unet")
    engine.park()
    assert engine._turns is not None
    assert engine._turns.here == []
    assert engine.memory == 1000  # as planned


@pytest.mark.parametrize("residency", ["model_offload", "group_offload"])
def test_requests_at_the_same_time_do_not_take_each_others_parts_away(
    house: Path, residency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = card(house, "sd")
    whole = loaded(wanted, None, monkeypatch)
    alone = [draw(whole, wanted, seed) for seed in range(4)]
    engine = loaded(wanted, plan(residency), monkeypatch)
    stepping = threading.Event()
    torn = watch_for_torn_parts(engine, stepping, monkeypatch)
    drawn: dict[int, Pixels] = {}

    def work(seed: int) -> None:
        if seed:  # while the first one's steps are at work
            assert stepping.wait(30)
        drawn[seed] = draw(engine, wanted, seed, Sharing(batch=1))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((drawn[seed] == alone[seed]).all() for seed in range(4))
    assert torn == []


def watch_for_torn_parts(
    engine: DiffusersEngine, stepping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Filled when weights leave while a part is at work, which a CPU would not mind."""

    def slowly(*_: Any) -> None:
        stepping.set()
        time.sleep(0.1)

    torn: list[str] = []
    working: set[str] = set()
    for name in ("unet", "text_encoder"):
        part = getattr(engine._loaded, name)
        part.register_forward_pre_hook(lambda *_, name=name: working.add(name))
        part.register_forward_hook(lambda *_, name=name: working.discard(name))
    engine._loaded.unet.register_forward_pre_hook(slowly)
    leave = HostCopy.to_host

    def watched(self: HostCopy) -> None:
        torn.extend(working)
        leave(self)

    monkeypatch.setattr(HostCopy, "to_host", watched)
    return torn


def test_a_plan_in_tiles_decodes_in_tiles(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = card(house, "sd")
    told: list[bool] = []
    engine = loaded(wanted, plan("resident", tiled=True), monkeypatch)
    kind = type(engine._loaded.vae)
    decode = kind._decode

    def watched(self: Any, *args: Any, **named: Any) -> Any:
        told.append(self.use_tiling)
        return decode(self, *args, **named)

    monkeypatch.setattr(kind, "_decode", watched)
    draw(engine, wanted, 1)
    assert told == [True]


def test_weights_are_counted_by_part(house: Path) -> None:
    wanted = card(house, "sd")
    counts = weight_counts(wanted)
    assert set(counts) >= {"unet", "vae", "text_encoder"}
    assert sum(counts.values()) * 4 == pytest.approx(weight_bytes(wanted, "cpu"), rel=0.01)
    absent = wanted.model_copy(update={"source": "/nowhere", "parameters": {"unet": 5}})
    assert weight_counts(absent) == {"unet": 5}


def test_only_a_device_with_memory_of_its_own_needs_a_plan(house: Path) -> None:
    wanted = card(house, "sd")
    plenty = Room(80 * 10**9, 64 * 10**9)
    assert plan_for(wanted, "cpu", plenty) is None
    assert plan_for(wanted, "cuda:0", plenty) is None  # it is tiny
    wanted = wanted.model_copy(update={"source": "/nowhere", "parameters": {"unet": 10**9}})
    assert plan_for(wanted, "cuda:0", NO_LIMIT) is None
    found = plan_for(wanted, "cuda:0", plenty)
    assert found is not None
    assert found.residency == "resident"
    assert bytes_needed(found, 17) == 17
    assert plan_told(wanted, "cuda:0", plenty) == found.sentence
    assert plan_told(wanted, "cpu", plenty) is None
    assert "does not fit" in str(plan_told(wanted, "cuda:0", Room(10**6, 10**6)))
    assert bytes_needed(plan("group_offload"), 17) == 1000


def test_what_fits_by_no_plan_is_refused_with_what_would(house: Path) -> None:
    wanted = card(house, "sd").model_copy(
        update={"source": "/nowhere", "parameters": {"unet": 10**10, "vae": 10**8}}
    )
    budget = Budget(max_vram=4 * 10**9)
    residency = Residency(
        "cuda:0", budget, 8 * 10**9, lambda _: pytest.fail("made"), lambda _: None
    )
    with pytest.raises(OutOfMemory, match=r"at least .* GB on the device"):
        residency.take(
            wanted.model_copy(update={"id": "large", "parameters": {"unet": 10**12}}), lambda: None
        )
