"""The judge of the bundled models' pictures: it sees what is there, and is not fooled.

Promised: the generator's own pictures are right in every aspect, the same pictures judged by other
prompts come near chance, and a plain blob passes for nothing but itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools.bundled_models.drawing import paint_drawing
from tools.bundled_models.grammar import Drawing, Size, Thing, is_held_out, sample_training
from tools.bundled_models.judge import View, compare, judge, look, shares
from tools.bundled_models.palette import COLOURS
from tools.bundled_models.prompts import judged_prompts, verdicts
from tools.bundled_models.shapes import SHAPES

PROMPTS = judged_prompts(40)
SIZES: tuple[Size, ...] = ("small", "large")
RED_ON_BLUE = Drawing(Thing("circle", "red"), "blue")


def painted(spec: Drawing, side: int = 256, seed: int = 5) -> Image.Image:
    return Image.fromarray(paint_drawing(spec, side, side, np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def truth() -> list[View]:
    return [look(painted(prompt.spec, seed=prompt.seed)) for prompt in PROMPTS]


def test_the_generators_own_pictures_are_right_in_every_aspect(truth: list[View]) -> None:
    rights = shares(verdicts(truth, PROMPTS))
    assert all(number > 0 for _, number in rights.values())
    assert {aspect: share for aspect, (share, _) in rights.items() if share < 1} == {}


def test_pictures_of_other_prompts_are_right_by_chance_alone(truth: list[View]) -> None:
    rights = {aspect: share for aspect, (share, _) in shares(verdicts(truth, PROMPTS, 3)).items()}
    for aspect in ("background", "colour", "shape", "pair_colours", "pair_shapes"):
        assert rights[aspect] <= 0.3, aspect
    assert rights["place"] <= 0.4
    assert rights["size"] <= 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_told_from_all_others_small_and_large(shape: str) -> None:
    for size in (None, "small", "large"):
        (seen,) = look(painted(Drawing(Thing(shape, "yellow", size), "black"))).objects
        assert (seen.shape, seen.colour) == (shape, "yellow")


def test_a_wobbly_blob_is_none_of_the_shapes_with_corners() -> None:
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    reach = 60 * (1 + 0.06 * np.sin(5 * turn + 1) + 0.04 * np.sin(9 * turn))
    corners = [(128 + r * np.cos(t), 128 + r * np.sin(t)) for r, t in zip(reach, turn, strict=True)]
    blob = Image.new("RGB", (256, 256), COLOURS["blue"])
    ImageDraw.Draw(blob).polygon(corners, COLOURS["red"])
    (seen,) = look(blob).objects
    assert (seen.shape, seen.colour) == ("circle", "red")
    assert judge(blob, replace(RED_ON_BLUE, first=Thing("star", "red"))).shape is False


def test_a_second_object_makes_a_single_ones_shape_wrong() -> None:
    pair = Drawing(Thing("circle", "red"), "blue", Thing("star", "white"), "left of")
    assert judge(painted(RED_ON_BLUE), RED_ON_BLUE).shape
    assert not judge(painted(pair), RED_ON_BLUE).shape


def test_two_objects_want_their_own_colours_on_their_own_sides() -> None:
    asked = Drawing(Thing("circle", "red"), "black", Thing("star", "white"), "above")
    picture = painted(asked)
    assert judge(picture, asked).pair_colours
    assert judge(picture, asked).pair_shapes
    swapped = replace(asked, relation="below")
    assert judge(picture, swapped).pair_colours is False
    beside = replace(asked, relation="left of")
    assert judge(picture, beside).pair_colours is False
    mixed = replace(asked, first=Thing("circle", "white"), second=Thing("star", "red"))
    assert judge(picture, mixed).pair_colours is False
    assert judge(painted(RED_ON_BLUE), replace(asked, background="blue")).pair_colours is False


def test_either_order_will_do_where_none_is_said() -> None:
    asked = Drawing(Thing("circle", "red"), "black", Thing("star", "white"), "and")
    picture = painted(replace(asked, relation="right of"))
    assert judge(picture, asked).pair_colours
    assert judge(picture, asked).pair_shapes


def test_an_empty_picture_shows_nothing_and_is_wrong() -> None:
    empty = Image.new("RGB", (256, 256), COLOURS["blue"])
    assert look(empty).objects == ()
    verdict = judge(empty, Drawing(Thing("circle", "red", "small", "left"), "blue"))
    assert (verdict.background, verdict.colour, verdict.shape) == (True, False, False)
    assert (verdict.place, verdict.size) == (False, False)


@pytest.mark.parametrize("size", ["small", None, "large"])
def test_a_size_is_right_only_where_it_was_asked_for(size: Size | None) -> None:
    view = look(painted(Drawing(Thing("square", "green", size), "white")))
    for asked in SIZES:
        verdict = compare(view, Drawing(Thing("square", "green", asked), "white"))
        assert verdict.size is (asked == size)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_the_size_of_the_picture_does_not_matter(side: int) -> None:
    spec = Drawing(Thing("heart", "pink", "large", None), "purple")
    verdict = judge(painted(spec, side), spec)
    assert (verdict.background, verdict.colour, verdict.shape, verdict.size) == (True,) * 4


def test_most_judged_prompts_are_of_combinations_that_training_never_draws() -> None:
    prompts = judged_prompts()
    assert len(prompts) == 200
    assert sum(is_held_out(prompt.spec) for prompt in prompts) >= 100
    rng = np.random.default_rng(0)
    assert not any(is_held_out(sample_training(rng)) for _ in range(2000))
