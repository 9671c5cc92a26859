"""What the real engine tells while it draws, and how a run ends.

Promised: phases, steps and images come in one order; a run that is called off leaves at once and
decodes nothing more; numbers that are none make no picture; a full device spoils only its own run.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from app.domain.errors import Cancelled, InvalidOutput, OutOfMemory
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, StepFinished
from app.engines import stable_diffusion
from app.engines.side_by_side import side_by_side
from tests.painter import Painter, pictures, steps


@pytest.fixture(scope="module")
def sketch() -> Painter:
    return Painter("sketch", stable_diffusion)


def test_phases_steps_and_images_are_told_in_this_order(sketch: Painter) -> None:
    told = sketch.run(sketch.wish(n=2, num_inference_steps=2))
    assert [brief(event) for event in told] == [
        PhaseStarted("preparing"),
        PhaseStarted("generating", 4),
        "step 1",
        "step 2",
        "image 0",
        "step 3",
        "step 4",
        PhaseStarted("post_processing"),
        "image 1",
    ]


def brief(event: EngineEvent) -> object:
    if isinstance(event, StepFinished):
        return f"step {event.step}"
    return f"image {event.index}" if isinstance(event, ImageFinished) else event


@pytest.mark.parametrize(("n", "at_step", "decoded"), [(1, 3, 0), (1, 5, 0), (2, 8, 1)])
def test_a_run_that_is_called_off_leaves_at_once_and_decodes_nothing_more(
    sketch: Painter, monkeypatch: pytest.MonkeyPatch, n: int, at_step: int, decoded: int
) -> None:
    decodings: list[int] = []
    decode = sketch.pipeline.vae.decode

    def counted(*given: object, **named: object) -> object:
        decodings.append(1)
        return decode(*given, **named)

    monkeypatch.setattr(sketch.pipeline.vae, "decode", counted)
    events: list[EngineEvent] = []

    def stop(event: EngineEvent) -> None:
        events.append(event)
        if brief(event) == f"step {at_step}":
            raise Cancelled("Somebody asked for it to stop.")

    with pytest.raises(Cancelled):
        sketch.run(sketch.wish(n=n), stop)
    assert brief(events[-1]) == f"step {at_step}"
    assert steps(events) == list(range(1, at_step + 1))
    assert len(decodings) == decoded
    assert len(pictures(sketch.run(sketch.wish()))) == 1  # the engine is as good as new
    assert len(decodings) == decoded + 1


def test_numbers_that_are_none_make_no_picture() -> None:
    painter = Painter("sketch", stable_diffusion)
    with torch.no_grad():
        painter.pipeline.unet.conv_out.weight[0, 0, 0, 0] = torch.nan
    events: list[EngineEvent] = []
    with pytest.raises(InvalidOutput):
        painter.run(painter.wish(), events.append)
    assert PhaseStarted("post_processing") not in events
    assert pictures(events) == []


def test_a_device_without_room_says_so_and_draws_the_next(
    sketch: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory at 0x7f00")

    with monkeypatch.context() as patch:
        patch.setattr(sketch.pipeline.unet, "forward", full)
        with pytest.raises(OutOfMemory) as caught:
            sketch.run(sketch.wish())
    assert "0x" not in caught.value.message
    assert len(pictures(sketch.run(sketch.wish()))) == 1


@pytest.mark.parametrize("at_call", [1, 4])
def test_a_picture_that_did_not_fit_is_drawn_once_more_with_less(
    sketch: Painter, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    forward = sketch.pipeline.unet.forward
    calls: list[int] = []

    def full_at_first(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == at_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*given, **named)

    usual = sketch.run(sketch.wish())
    with monkeypatch.context() as patch:
        patch.setattr(sketch.pipeline.unet, "forward", full_at_first)
        told = sketch.run(sketch.wish())
    assert len(calls) == at_call + 5
    assert (pictures(told)[0] == pictures(usual)[0]).all()
    assert steps(told) == steps(usual)  # each is told once
    assert [brief(event) for event in told][-2:] == [PhaseStarted("post_processing"), "image 0"]


def test_less_memory_means_tiles(sketch: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled: list[bool] = []
    decode = type(sketch.pipeline.vae).decode

    def full_at_first(self: Any, *given: Any, **named: Any) -> Any:
        tiled.append(self.use_tiling)
        if len(tiled) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, *given, **named)

    monkeypatch.setattr(type(sketch.pipeline.vae), "decode", full_at_first)
    assert len(pictures(sketch.run(sketch.wish()))) == 1
    assert len(pictures(sketch.run(sketch.wish()))) == 1
    assert tiled == [False, True, False]


def test_the_first_failure_of_several_pictures_ends_them_all_and_is_raised() -> None:
    begun: list[int] = []
    both = threading.Barrier(2)

    def draw(index: int) -> None:
        begun.append(index)
        if index < 2:
            both.wait(5)
        if index == 1:
            raise InvalidOutput("no picture")
        time.sleep(0.05)

    with pytest.raises(InvalidOutput):
        side_by_side(draw, 50, 2)
    assert {0, 1} <= set(begun)
    assert len(begun) < 6


def test_threads_that_share_a_tokenizer_do_not_change_each_others_prompts(sketch: Painter) -> None:
    tokenizer = sketch.pipeline.tokenizer
    wrong: list[int] = []

    def padded() -> None:
        for _ in range(300):
            ids = tokenizer("a red circle", padding="max_length", truncation=True).input_ids
            if len(ids) != tokenizer.model_max_length:
                wrong.append(len(ids))

    def bare() -> None:
        for _ in range(600):
            tokenizer("a red circle")

    threads = [threading.Thread(target=work) for work in (padded, bare, padded, bare)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_model_that_was_parked_draws_the_same_picture() -> None:
    painter = Painter("sketch", stable_diffusion)
    before, memory = painter.draw(), painter.engine.memory
    painter.engine.park()
    painter.engine.unpark()
    assert (painter.draw() == before).all()
    assert painter.engine.memory == memory > 20_000_000
