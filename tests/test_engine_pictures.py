"""What the bundled `sketch` draws in the real engine.

Promised: a picture is, bit for bit, what the stock diffusers pipeline draws with the same arguments,
whoever else draws at the same time, for every task and sampler; and it obeys its prompt.

Pictures are judged by colours and places, which the bundled models have known from early on.
"""

from __future__ import annotations

import threading
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from app.domain.events import EngineEvent, ImageFinished, StepFinished
from app.engines import stable_diffusion
from app.engines.image_codec import Pixels
from tests.painter import PROMPT, Painter, pictures, png, right_half, steps
from tests.pictures import colour_at, corners

# diffusers' Euler hands torch tensors to numpy in a way that numpy 2 advises against.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", KARRAS),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", KARRAS),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", SDE),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", KARRAS | SDE),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", SDE),
    "dpmpp_sde_karras": ("DPMSolverSinglestepScheduler", KARRAS | SDE),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


@pytest.fixture(scope="module")
def sketch() -> Painter:
    return Painter("sketch", stable_diffusion)


@pytest.fixture(scope="module")
def red_circle(sketch: Painter) -> Pixels:
    return sketch.draw(num_inference_steps=8)


def change(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def stock_sampler(painter: Painter, name: str) -> Any:
    kind, overrides = STOCK[name]
    return getattr(diffusers, kind).from_config(painter.config, **overrides)


# -- the same as stock diffusers -------------------------------------------------------------------


def test_every_sampler_of_the_card_is_compared(sketch: Painter) -> None:
    assert set(STOCK) == set(sketch.card.samplers)


@pytest.mark.parametrize("name", STOCK)
def test_every_sampler_draws_what_stock_diffusers_draws_and_counts_its_steps(
    sketch: Painter, name: str
) -> None:
    events = sketch.run(sketch.wish(sampler=name))
    (picture,) = pictures(events)
    assert steps(events) == [1, 2, 3, 4, 5]
    assert picture.std() > 5
    expected = sketch.by_hand(
        "StableDiffusionPipeline",
        stock_sampler(sketch, name),
        prompt=PROMPT,
        num_inference_steps=5,
        guidance_scale=4.0,
        width=128,
        height=128,
    )
    assert np.array_equal(picture, expected)


def test_size_guidance_and_negative_prompt_reach_the_pipeline(sketch: Painter) -> None:
    given: dict[str, Any] = {"guidance_scale": 2.5, "negative_prompt": "red", "width": 384}
    picture = sketch.draw("a circle", **given, height=256)
    assert picture.shape == (256, 384, 3)
    expected = sketch.by_hand(
        "StableDiffusionPipeline",
        stock_sampler(sketch, "ddim"),
        prompt="a circle",
        num_inference_steps=5,
        height=256,
        **given,
    )
    assert np.array_equal(picture, expected)


@pytest.mark.parametrize(
    "kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]
)
def test_edits_are_what_stock_diffusers_makes_of_them(
    sketch: Painter, red_circle: Pixels, kind: str
) -> None:
    given: dict[str, Any] = {"prompt": "a blue circle", "strength": 0.7}
    stock: dict[str, Any] = {"image": Image.fromarray(red_circle)}
    mask = None
    if kind == "StableDiffusionInpaintPipeline":
        mask = png(right_half())
        stock |= {"mask_image": Image.fromarray(right_half()), "width": 128, "height": 128}
    events = sketch.run(
        sketch.wish(
            **given,
            sampler="euler_a",
            num_inference_steps=10,
            image=png(red_circle),
            mask_image=mask,
        )
    )
    assert steps(events) == list(range(1, 8))
    expected = sketch.by_hand(
        kind,
        stock_sampler(sketch, "euler_a"),
        num_inference_steps=10,
        guidance_scale=4.0,
        **given,
        **stock,
    )
    assert np.array_equal(pictures(events)[0], expected)


def test_image_i_of_n_is_what_seed_plus_i_draws_alone(sketch: Painter) -> None:
    events = sketch.run(sketch.wish(n=3, sampler="euler_a", seed=40))
    seeds = [event.seed for event in events if isinstance(event, ImageFinished)]
    assert seeds == [40, 41, 42]
    for seed, picture in zip(seeds, pictures(events), strict=True):
        assert np.array_equal(picture, sketch.draw(sampler="euler_a", seed=seed))


def test_two_requests_interleaved_step_by_step_draw_what_they_draw_alone(sketch: Painter) -> None:
    wishes = [
        sketch.wish(sampler="euler_a", seed=1),
        sketch.wish("a blue circle", sampler="dpmpp_2m", seed=2, guidance_scale=2.0, width=192),
    ]
    alone = [pictures(sketch.run(wish))[0] for wish in wishes]
    together: dict[int, Pixels] = {}
    meeting = threading.Barrier(2, timeout=60)

    def meet(event: EngineEvent) -> None:
        if isinstance(event, StepFinished):
            meeting.wait()

    def work(index: int) -> None:
        (together[index],) = pictures(sketch.run(wishes[index], meet))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [np.array_equal(together[index], alone[index]) for index in range(2)] == [True, True]


# -- the picture obeys the prompt ------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("colour", "ground"),
    [
        ("red", "white"),
        ("blue", "yellow"),
        ("green", "black"),
        ("yellow", "blue"),
        ("black", "white"),
        ("white", "red"),
    ],
)
def test_colours_of_the_shape_and_of_the_background_are_those_asked_for(
    sketch: Painter, colour: str, ground: str, seed: int
) -> None:
    prompt = f"a large {colour} circle on a {ground} background"
    picture = sketch.draw(prompt, num_inference_steps=8, seed=seed)
    assert colour_at(picture, 0.5, 0.5) == colour
    assert corners(picture) == {ground}


@pytest.mark.parametrize(("place", "x", "y"), [("left", 0, -1), ("right", 0, 1), ("top", 1, -1)])
def test_the_shape_is_where_it_was_asked_for(sketch: Painter, place: str, x: int, y: int) -> None:
    prompt = f"a small red circle on a white background on the {place}"
    picture = sketch.draw(prompt, width=256, height=256, num_inference_steps=8).astype(int)
    redness = np.clip(picture[..., 0] - picture[..., 1], 0, None).sum(axis=x)
    centre = (redness * np.linspace(-1, 1, len(redness))).sum() / redness.sum()
    assert centre * y > 0.2


def test_a_strong_edit_recolours_and_a_weak_one_keeps(sketch: Painter, red_circle: Pixels) -> None:
    def edited(strength: float) -> Pixels:
        prompt = "a large blue circle on a white background"
        return sketch.draw(prompt, image=png(red_circle), strength=strength, num_inference_steps=10)

    assert colour_at(edited(0.8), 0.5, 0.5) == "blue"
    assert colour_at(edited(0.1), 0.5, 0.5) == "red"
    assert change(edited(0.1), red_circle) < change(edited(0.8), red_circle) / 2


@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_inpainting_changes_what_the_mask_shows_and_keeps_the_rest(
    sketch: Painter, red_circle: Pixels, strength: float
) -> None:
    picture = sketch.draw(
        "a large blue circle on a yellow background",
        image=png(red_circle),
        mask_image=png(right_half()),
        strength=strength,
        num_inference_steps=8,
    )
    kept = change(picture[:, :56], red_circle[:, :56])
    painted = change(picture[:, 72:], red_circle[:, 72:])
    assert painted > 5 * kept
    assert painted > 30
