"""LoRAs in the engine.

Promised: with any set of LoRAs a picture is, bit for bit, what stock diffusers draws after
`load_lora_weights` and `set_adapters`; without LoRAs, and with such of scale 0, it is what it would be
if no LoRA had ever been loaded; sets that are drawn at the same time do not disturb each other; a file
that does not fit changes nothing for anybody.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.domain.errors import Cancelled, InvalidRequest
from app.domain.events import EngineEvent, ImageFinished, Waited
from app.domain.lora import Lora
from app.domain.memory_plan import Plan
from app.domain.pipelines import PIPELINES
from app.domain.request import GenerationRequest
from app.engines import diffusers_engine, picture_text, turnstile, weights
from app.engines.base import Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.image_codec import Pixels
from tests import loras, zoo
from tests.kinds import KINDS
from tests.lora_house import (
    House,
    Named,
    asked,
    by_hand,
    drawn,
    engine,
    house,
    one_core,
    with_loras,
    zoo_pipeline,
)

__all__ = ["house", "one_core"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore")

TAKERS = [name for name, kind in KINDS.items() if PIPELINES[kind.pipeline].loras]
ROUNDED = {"sana": 1}
"""Levels. Its kernels round by where their input lies, and a pixel in thousands falls on the edge."""

TOGETHER = Sharing((0, 0.0), 8)


@pytest.mark.parametrize("name", TAKERS)
def test_every_set_is_drawn_as_stock_diffusers_draws_it(house: House, name: str) -> None:
    made = engine(house, name)
    plain, _ = drawn(made, asked(house, name, []))
    sets: list[Named] = [
        [("a", 1.0)],
        [("a", 0.6), ("b", -0.4)],
        [("a", 0.2), ("b", 1.5)],  # the same files otherwise
        [("c", 1.0)],
    ]
    seen = [plain]
    for named in sets:
        picture, _ = drawn(made, asked(house, name, named))
        apart = np.abs(picture.astype(int) - by_hand(house, name, named))
        assert apart.max() <= ROUNDED.get(name, 0), named
        assert not any((picture == other).all() for other in seen), named
        seen.append(picture)
        assert (drawn(made, asked(house, name, []))[0] == plain).all(), named
    assert (drawn(made, asked(house, name, [("a", 0.0), ("b", 0.0)]))[0] == plain).all()
    one, _ = drawn(made, asked(house, name, [("b", 0.0), ("a", 1.0)]))
    assert (one == seen[1]).all()


def test_a_models_own_modules_are_never_touched(house: House) -> None:
    """No layer of another class, no weight elsewhere: nothing to be restored."""
    made = engine(house, "sd")

    def modules() -> list[tuple[str, type, int]]:
        return [
            (f"{part}.{name}", type(module), module.weight.data_ptr() if whole else 0)
            for part in ("unet", "text_encoder")
            for name, module in getattr(made._loaded, part).named_modules()
            for whole in [isinstance(getattr(module, "weight", None), torch.Tensor)]
        ]

    before = modules()
    drawn(made, asked(house, "sd", [("a", 1.0)]))
    assert modules() == before
    assert not hasattr(made._loaded.unet, "peft_config")


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_sets_side_by_side_do_not_disturb_each_other(
    house: House, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as alone, bit for bit: their steps take turns, and what is not equal is not shared."""
    monkeypatch.setattr(turnstile, "_PATIENCE", (1.0, 0.2, 0.2))
    made = engine(house, name)
    sets: list[Named] = [[("a", 1.0)], [], [("b", 0.7)], [("a", 0.5)], [("a", 0.5), ("b", 1.0)]]
    alone = [drawn(made, asked(house, name, named))[0] for named in sets]
    made._adapters.clear()  # type: ignore[union-attr]
    for preset in ("strict", "exact"):
        together = at_once(made, [asked(house, name, named, preset) for named in sets])
        for named, one, (other, batches) in zip(sets, alone, together, strict=True):
            assert (one == other).all(), (preset, named)
            assert set(batches) == {1}


def at_once(
    made: DiffusersEngine, requests: Sequence[GenerationRequest]
) -> list[tuple[Pixels, list[int]]]:
    results: dict[int, tuple[Pixels, list[int]]] = {}
    start = threading.Barrier(len(requests), timeout=20)

    def work(index: int) -> None:
        start.wait()
        results[index] = drawn(made, requests[index], TOGETHER)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(requests))]


def test_equal_sets_share_their_steps(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turnstile, "_PATIENCE", (1.0, 0.5, 0.5))
    made = engine(house, "sd")
    named: Named = [("a", 1.0), ("b", 0.5)]
    alone, _ = drawn(made, asked(house, "sd", named))
    together = at_once(made, [asked(house, "sd", named, "exact")] * 3)
    assert max(batch for _, batches in together for batch in batches) > 1
    for picture, _ in together:
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1


# -- what is kept ----------------------------------------------------------------------------------


def test_those_used_least_recently_go_and_come_back(house: House) -> None:
    made = engine(house, "sd", lora_room=1)
    adapters = made._adapters
    assert adapters is not None
    plain_bytes = made.memory
    first, _ = drawn(made, asked(house, "sd", [("a", 1.0)]))
    one = made.memory - plain_bytes
    assert one > 0
    drawn(made, asked(house, "sd", [("b", 1.0)]))
    assert [key[0][0][0] for key in adapters._kept] == ["b"]  # there is no room for two
    again, _ = drawn(made, asked(house, "sd", [("a", 1.0)]))
    assert (again == first).all()
    assert made.memory - plain_bytes == one


def test_other_scales_of_the_same_files_take_no_more_memory(house: House) -> None:
    made = engine(house, "sd")
    drawn(made, asked(house, "sd", [("a", 1.0)]))
    before = made.memory
    for scale in (0.1, 0.2, 0.3):
        drawn(made, asked(house, "sd", [("a", scale)]))
    assert made.memory == before
    assert made._adapters is not None
    assert len(made._adapters._kept) == 4


def test_only_so_many_sets_are_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engines import adapters

    monkeypatch.setattr(adapters, "_MOST_SETS", 2)
    made = engine(house, "sd")
    for scale in (0.1, 0.2, 0.3):
        drawn(made, asked(house, "sd", [("a", scale)]))
    assert made._adapters is not None
    assert [key[0][1] for key in made._adapters._kept] == [0.2, 0.3]


def test_a_file_that_was_changed_is_read_again(house: House, tmp_path: Path) -> None:
    made = engine(house, "sd")
    file = tmp_path / "x.safetensors"
    request = asked(house, "sd", [])
    found = []
    for letter in "ab":
        file.write_bytes(Path(house.file("sd", letter)).read_bytes())
        found.append(drawn(made, with_loras(request, (Lora("x", 1.0, str(file)),)))[0])
    assert (found[0] == by_hand(house, "sd", [("a", 1.0)])).all()
    assert (found[1] == by_hand(house, "sd", [("b", 1.0)])).all()


def test_what_words_became_with_one_set_is_not_used_with_another(house: House) -> None:
    """And is kept for the next time."""
    made = engine(house, "sd")
    calls: list[int] = []
    made._loaded.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        for named in ([("a", 1.0)], [("a", 0.5)], [], [("c", 1.0)]):
            picture, _ = drawn(made, asked(house, "sd", named))
            assert not named or (picture == by_hand(house, "sd", named)).all()
    # With "c" the model's own encoder is used, and twins have its hooks: both prompts each time.
    assert len(calls) == 2 * 3


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_they_are_there_again_after_the_model_was_away(house: House, name: str) -> None:
    made = engine(house, name)
    plain, _ = drawn(made, asked(house, name, []))
    with_one, _ = drawn(made, asked(house, name, [("a", 0.7)]))
    made.park()
    assert made._adapters is not None
    assert made._adapters.memory == 0
    made.unpark()
    assert (drawn(made, asked(house, name, [("a", 0.7)]))[0] == with_one).all()
    assert (drawn(made, asked(house, name, []))[0] == plain).all()


# -- parts that take turns -------------------------------------------------------------------------


def in_turn(house: House, residency: Any, monkeypatch: pytest.MonkeyPatch) -> DiffusersEngine:
    plan = Plan(residency, "float32", False, vram=1000, ram=0, working=0)
    monkeypatch.setattr(diffusers_engine, "plan_for", lambda *_: plan)
    load = weights.load_pipeline

    def aligned(*given: Any, **named: Any) -> Any:
        return zoo.aligned(load(*given, **named))

    monkeypatch.setattr(diffusers_engine, "load_pipeline", aligned)
    return engine(house, "sdxl")


def test_parts_that_take_turns_bring_theirs_along(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = in_turn(house, "model_offload", monkeypatch)
    plain, _ = drawn(made, asked(house, "sdxl", []))
    for named in ([("a", 1.0)], [("a", 0.3), ("b", 1.0)]):
        picture, _ = drawn(made, asked(house, "sdxl", named))
        apart = picture.astype(int) - by_hand(house, "sdxl", named)
        assert np.abs(apart).max() <= 1  # weights lie elsewhere, and kernels round by that
        assert (drawn(made, asked(house, "sdxl", []))[0] == plain).all()
    assert made._adapters is not None
    (kept, *_) = made._adapters._kept.values()
    # A copy of the hook that brings the part would keep the weights a second time.
    assert [*kept.parts["unet"]._forward_pre_hooks.values()] == [
        *made._loaded.unet._forward_pre_hooks.values()
    ]
    made.park()
    made.unpark()
    assert (drawn(made, asked(house, "sdxl", []))[0] == plain).all()
    made.unload()


def test_layers_that_take_turns_take_none(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = in_turn(house, "group_offload", monkeypatch)
    plain, _ = drawn(made, asked(house, "sdxl", []))
    with pytest.raises(InvalidRequest, match="take turns") as refused:
        drawn(made, asked(house, "sdxl", [("a", 1.0)]))
    assert refused.value.param == "loras"
    assert (drawn(made, asked(house, "sdxl", []))[0] == plain).all()
    made.unload()


def test_kohyas_names_and_alphas(house: House, tmp_path: Path) -> None:
    """An alpha of a quarter of the rank makes the LoRA a quarter as strong."""
    made = engine(house, "sd")
    found = loras.tensors(zoo_pipeline("sd"), rank=4, text=False)
    plain = loras.write(tmp_path / "plain.safetensors", found)
    named = loras.write(tmp_path / "kohya.safetensors", loras.like_kohya(found, alpha=1.0))
    request = asked(house, "sd", [])
    quarter, _ = drawn(made, with_loras(request, (Lora("plain", 0.25, str(plain)),)))
    kohyas, _ = drawn(made, with_loras(request, (Lora("kohya", 1.0, str(named)),)))
    assert (quarter == kohyas).all()


def test_who_is_called_off_while_he_waits_for_another(house: House) -> None:
    building = threading.Lock()
    made = engine(house, "sd", building=building)

    def report(event: EngineEvent) -> None:
        if isinstance(event, Waited):
            raise Cancelled("Enough.")

    with building, pytest.raises(Cancelled):
        made.generate(asked(house, "sd", [("a", 1.0)]), report)
    drawn(made, asked(house, "sd", [("a", 1.0)]))


def test_the_picture_tells_of_them(house: House) -> None:
    made = engine(house, "sd")
    events: list[EngineEvent] = []
    made.generate(asked(house, "sd", [("a", 0.5), ("b", 0.0)]), events.append)
    (image,) = [event.image for event in events if isinstance(event, ImageFinished)]
    told = picture_text.read(image).facts
    text = Image.open(io.BytesIO(image)).info["parameters"]
    assert told["loras"] == "a:0.5, b:0"
    assert told["lora_hashes"].startswith("a: ")
    assert "<lora:a:0.5><lora:b:0>\n" in text
