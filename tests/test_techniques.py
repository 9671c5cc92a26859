"""Faster ways of drawing, beside the plain one, with the bundled models.

Promised: a technique changes its own pictures only: plain ones stay bit for bit what they were before,
meanwhile and afterwards, however a run with a technique ended; weights are never copied.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from app.domain.errors import Cancelled, InvalidRequest
from app.domain.events import EngineEvent, StepFinished
from app.domain.request import GenerationRequest
from app.engines import flux, stable_diffusion
from app.engines.base import ALONE, Sharing
from app.engines.calibration import closeness
from app.engines.forward_batcher import ForwardBatcher
from app.engines.image_codec import Pixels
from app.engines.techniques import Techniques
from tests.painter import Painter, pictures

# torch says once that a kernel for mixed types is not fused.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")

CACHE = "first_block_cache=0.4"
"""Takes short cuts in many of the bundled model's steps."""


@pytest.fixture(scope="module")
def sketch() -> Painter:
    return Painter("sketch", stable_diffusion)


@pytest.fixture(scope="module")
def sketch_flux() -> Painter:
    return Painter("sketch-flux", flux)


def wish(painter: Painter, technique: str = "", n: int = 1) -> GenerationRequest:
    preset = "fast" if technique else "exact"
    plain = painter.wish(num_inference_steps=8, n=n)
    return msgspec.structs.replace(plain, preset=preset, technique=technique)


def draw(painter: Painter, technique: str = "", sharing: Sharing = ALONE) -> Pixels:
    (picture,) = pictures(painter.run(wish(painter, technique), sharing=sharing))
    return picture


def same(one: Pixels, other: Pixels) -> bool:
    return bool(np.array_equal(one, other))


def test_bfloat16_is_close_and_leaves_exact_as_it_was(sketch: Painter) -> None:
    before = draw(sketch)
    narrow = draw(sketch, "bfloat16")
    assert not same(narrow, before)
    assert closeness(narrow, before).psnr > 40
    assert same(draw(sketch), before)
    assert same(draw(sketch, "bfloat16"), narrow)


def test_a_block_cache_is_near_and_leaves_exact_as_it_was(sketch_flux: Painter) -> None:
    before = draw(sketch_flux)
    cached = draw(sketch_flux, "first_block_cache=0.2")
    assert not same(cached, before)
    assert closeness(cached, before).psnr > 24
    assert same(draw(sketch_flux), before)
    assert same(draw(sketch_flux, "first_block_cache=0.2"), cached)


@pytest.mark.parametrize("end", [Cancelled("Somebody asked for it to stop."), RuntimeError("!")])
def test_a_run_that_ends_early_leaves_nothing_to_the_next(
    sketch_flux: Painter, end: Exception
) -> None:
    plain, cached = draw(sketch_flux), draw(sketch_flux, CACHE)
    assert not same(plain, cached)
    for at_step in (1, 4, 7):

        def stop(event: EngineEvent, at_step: int = at_step) -> None:
            if isinstance(event, StepFinished) and event.step == at_step:
                raise end

        with pytest.raises(type(end)):
            sketch_flux.run(wish(sketch_flux, CACHE), stop)
        assert same(draw(sketch_flux, CACHE), cached)
        assert same(draw(sketch_flux), plain)


def test_runs_at_the_same_time_do_not_see_each_other(sketch_flux: Painter) -> None:
    ways = ("", CACHE, "first_block_cache=0.2", CACHE, "")
    alone = {way: draw(sketch_flux, way) for way in set(ways)}
    together: list[tuple[str, Pixels]] = []
    # Cached runs could share forwards by what they say, but no two of them may.
    several = Sharing(batch=4)

    def work(way: str) -> None:
        for _ in range(2):
            together.append((way, draw(sketch_flux, way, several if way else ALONE)))

    threads = [threading.Thread(target=work, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 10
    assert [way for way, picture in together if not same(picture, alone[way])] == []


def test_strict_pictures_never_share_a_forward(
    sketch: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    merged = ForwardBatcher.forward

    def counted(self: ForwardBatcher, calls: list[object]) -> object:
        sizes.append(len(calls))
        return merged(self, calls)  # type: ignore[arg-type]

    monkeypatch.setattr(ForwardBatcher, "forward", counted)
    plain = wish(sketch, n=2)
    strict = msgspec.structs.replace(plain, preset="strict")
    drawn = pictures(sketch.run(strict, sharing=Sharing(batch=4)))
    assert sizes == []
    assert same(drawn[0], draw(sketch))
    sketch.run(plain, sharing=Sharing(batch=4))
    assert 2 in sizes  # those of exact do


@pytest.mark.parametrize(
    ("model", "technique"),
    [
        ("sketch", "first_block_cache=0.1"),
        ("sketch-flux", "first_block_cache=much"),
        ("sketch-flux", "first_block_cache=-1"),
        ("sketch-flux", "first_block_cache=nan"),
        ("sketch-flux", "nonsense"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    sketch: Painter, sketch_flux: Painter, model: str, technique: str
) -> None:
    painter = {"sketch": sketch, "sketch-flux": sketch_flux}[model]
    with pytest.raises(InvalidRequest) as caught:
        draw(painter, technique)
    assert caught.value.param == "preset"
    assert draw(painter).shape == (128, 128, 3)


def test_weights_are_shared_between_all_techniques(sketch_flux: Painter) -> None:
    plain = list(sketch_flux.pipeline.transformer.parameters())
    techniques = Techniques(sketch_flux.pipeline.transformer)
    with techniques.denoiser(CACHE) as one, techniques.denoiser(CACHE) as two:
        assert one.denoiser is not two.denoiser
        for twin in (one, two):
            ours = list(twin.denoiser.parameters())
            assert all(mine is theirs for mine, theirs in zip(ours, plain, strict=True))
    with techniques.denoiser(CACHE) as third, techniques.denoiser(CACHE) as fourth:
        assert {third.denoiser, fourth.denoiser} == {one.denoiser, two.denoiser}


def test_a_compiled_denoiser_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, given = nn.Linear(2, 2), torch.ones(1, 2)
    with Techniques(plain).denoiser("compile") as found:
        assert isinstance(found.denoiser, nn.Linear)
        assert torch.equal(found.denoiser(given), plain(given))
        stand_in: Any = found.denoiser
        assert stand_in._call.__self__._orig_mod is plain
