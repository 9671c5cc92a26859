"""What the bundled `sketch-flux` draws in the real engine.

Promised: a picture is, bit for bit, what the stock Flux pipeline draws with the same arguments, with
either sampler; edits and inpainting run, and the steps told are the steps that ran.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from app.domain.errors import InvalidRequest
from app.engines import flux
from app.engines.image_codec import Pixels
from tests.painter import PROMPT, Painter, pictures, png, right_half, steps


@pytest.fixture(scope="module")
def sketch_flux() -> Painter:
    return Painter("sketch-flux", flux)


def red_circle() -> Pixels:
    y, x = np.mgrid[-64:64, -64:64]
    inside = (x**2 + y**2 < 40**2)[..., None]
    return np.where(inside, (214, 38, 32), (252, 252, 252)).astype(np.uint8)


def flow_match_heun(painter: Painter) -> Any:
    """Stock Heun with its own spacing, made to take the two arguments that Flux pipelines pass."""
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(painter.config)
    stock = scheduler.set_timesteps
    scheduler.set_timesteps = lambda sigmas, mu, device: stock(len(sigmas), device)
    return scheduler


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("guided", [{}, {"true_cfg_scale": 2.0, "negative_prompt": "red"}])
def test_flux_draws_what_stock_diffusers_draws_and_counts_its_steps(
    sketch_flux: Painter, name: str, guided: dict[str, Any]
) -> None:
    events = sketch_flux.run(sketch_flux.wish(sampler=name, guidance_scale=3.0, **guided))
    assert steps(events) == [1, 2, 3, 4, 5]
    euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(sketch_flux.config)
    expected = sketch_flux.by_hand(
        "FluxPipeline",
        euler if name == "euler" else flow_match_heun(sketch_flux),
        prompt=PROMPT,
        num_inference_steps=5,
        guidance_scale=3.0,
        width=128,
        height=128,
        max_sequence_length=32,
        **guided,
    )
    assert np.array_equal(pictures(events)[0], expected)


def test_guidance_is_passed_on_though_this_model_makes_nothing_of_it(sketch_flux: Painter) -> None:
    assert (
        flux.RECIPES["FluxPipeline"].arguments(sketch_flux.wish(guidance_scale=3.0))[
            "guidance_scale"
        ]
        == 3.0
    )


@pytest.mark.parametrize("mask", [None, png(right_half())], ids=["edit", "inpaint"])
def test_flux_edits_pictures_and_counts_its_steps(sketch_flux: Painter, mask: bytes | None) -> None:
    wish = sketch_flux.wish(
        image=png(red_circle()), mask_image=mask, strength=0.75, num_inference_steps=8
    )
    events = sketch_flux.run(wish)
    (picture,) = pictures(events)
    assert picture.shape == (128, 128, 3)
    assert steps(events) == [1, 2, 3, 4, 5, 6]
    if mask is not None:
        kept, painted = (
            np.abs(part.astype(int)).mean()
            for part in np.split(picture.astype(int) - red_circle(), 2, axis=1)
        )
        assert painted > 3 * kept


def test_heun_is_refused_where_it_would_start_at_the_wrong_noise(sketch_flux: Painter) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sketch_flux.wish(sampler="heun", image=png(red_circle()))
    assert refused.value.param == "sampler"


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 0.85, 1.0])
def test_an_edit_runs_as_many_steps_as_it_tells(sketch_flux: Painter, strength: float) -> None:
    wish = sketch_flux.wish(image=png(red_circle()), strength=strength, num_inference_steps=8)
    calls: list[int] = []
    hook = sketch_flux.pipeline.transformer.register_forward_hook(lambda *given: calls.append(1))
    try:
        events = sketch_flux.run(wish)
    finally:
        hook.remove()
    assert steps(events) == list(range(1, len(calls) + 1))
    assert wish.total_steps == len(calls)
