"""What the bundled models' weights draw: a sample of the table in docs/bundled-models.md.

Promised: drawn as the gateway draws by default, prompts that were mostly never trained on come out as
asked; the judge is not lenient, for the same pictures judged by other prompts come near chance; and the
knobs that tests of the gateway turn (negative prompts, strength, masks, sizes) can be seen in pictures.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from app.settings import load_cards
from tools.bundled_models.artist import DEFAULTS, default_settings, draw, load
from tools.bundled_models.controls import (
    AFTER,
    NEGATIVE_SCALE,
    NEVER_SEEN,
    before,
    difference,
    edited,
    from_hills,
)
from tools.bundled_models.evaluate import draw_all
from tools.bundled_models.flux_model import DEFAULT_TEXT_LENGTH
from tools.bundled_models.judge import View, look, shares
from tools.bundled_models.prompts import judged_prompts, verdicts

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "app" / "bundled_models"
PROMPTS = judged_prompts(24)
LEAST = {
    "sketch": {
        "background": 0.95,
        "colour": 0.9,
        "place": 0.8,
        "size": 0.8,
        "shape": 0.85,
        "pair_colours": 0.75,
    },
    "sketch-flux": {
        "background": 0.95,
        "colour": 0.85,
        "place": 0.8,
        "size": 0.8,
        "shape": 0.7,
        "pair_colours": 0.5,
    },
}
"""Somewhat below what 200 prompts measure: a sample of 24 has eight pairs."""
MOST_BY_CHANCE = {"background": 0.3, "colour": 0.4, "shape": 0.35, "pair_colours": 0.2}
"""The control must stay below these."""


MOST_BYTES = 15 * 1024 * 1024


@cache
def artist(model: str) -> DiffusionPipeline:
    return load(MODELS / model)


@cache
def seen(model: str) -> list[View]:
    """What the judge sees in the sample's pictures, drawn at the defaults, each from its own seed."""
    pipeline = artist(model)
    pictures = draw_all(pipeline, PROMPTS, default_settings(pipeline), batch=8)
    return [look(picture) for picture in pictures]


def main_colour(picture: Image.Image) -> str:
    """Of the largest object; nothing without one."""
    found = look(picture).objects
    return found[0].colour if found else ""


@pytest.mark.parametrize("model", LEAST)
def test_what_is_judged_is_what_the_gateway_draws_by_default(model: str) -> None:
    card = load_cards(ROOT / "config" / "models")[model].defaults
    settings = DEFAULTS[model]
    assert card.num_inference_steps == settings.steps
    assert (card.width, card.height) == (settings.width, settings.height)
    if model == "sketch":
        assert card.guidance_scale == settings.guidance
    else:
        assert card.max_sequence_length == DEFAULT_TEXT_LENGTH


@pytest.mark.parametrize("model", LEAST)
def test_held_out_prompts_are_drawn_as_asked(model: str) -> None:
    rights = shares(verdicts(seen(model), PROMPTS))
    missed = {aspect: rights[aspect] for aspect, least in LEAST[model].items()}
    assert {a: got for a, got in missed.items() if got[0] < LEAST[model][a]} == {}


@pytest.mark.parametrize("model", LEAST)
def test_the_same_pictures_judged_by_other_prompts_come_near_chance(model: str) -> None:
    others = shares(verdicts(seen(model), PROMPTS, shift=3))
    assert {a: others[a] for a, most in MOST_BY_CHANCE.items() if others[a][0] > most} == {}


@pytest.mark.parametrize("model", LEAST)
def test_a_folder_is_no_larger_than_promised(model: str) -> None:
    files = [path for path in (MODELS / model).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("model", LEAST)
def test_a_negative_prompt_drives_a_colour_away(model: str) -> None:
    pipeline, words = artist(model), "a large circle on a white background"
    settings = default_settings(pipeline)
    if model == "sketch-flux":
        settings = replace(settings, guidance=NEGATIVE_SCALE)
    seeds = [0, 1, 2]
    free = [main_colour(picture) for picture in draw(pipeline, [words] * 3, seeds, settings)]
    assert all(free)
    for seed, colour in zip(seeds, free, strict=True):
        unwanted = f"a large {colour} circle on a white background"
        (picture,) = draw(pipeline, [words], [seed], settings, negative=unwanted)
        assert main_colour(picture) != colour


@pytest.mark.parametrize("model", LEAST)
def test_an_edit_keeps_the_picture_at_low_strength_and_obeys_at_high(model: str) -> None:
    low, high = (look(edited(artist(model), AFTER, strength, seed=1)) for strength in (0.2, 1.0))
    (old,) = look(before()).objects
    assert (low.background, low.objects[0].colour) == ("white", "red")
    assert low.objects[0].centre == pytest.approx(old.centre, abs=0.05)
    assert (high.background, high.objects[0].colour) == ("yellow", "blue")


@pytest.mark.parametrize("model", LEAST)
def test_a_mask_alone_is_repainted(model: str) -> None:
    words = "a blue star on a green background on the right"
    changed = difference(edited(artist(model), words, 1.0, seed=1, masked=True), before())
    assert changed[:, :120].mean() < 6  # 2 are the autoencoder's way there and back
    assert changed[:, 136:].mean() > 40


@pytest.mark.parametrize("model", LEAST)
def test_words_outside_the_grammar_give_a_clean_picture(model: str) -> None:
    words = ["an astronaut riding a horse", *NEVER_SEEN[:2]]
    pipeline = artist(model)
    for picture in draw(pipeline, words, [1, 1, 1], default_settings(pipeline)):
        assert from_hills(picture) < 40  # noise and a circle are 80 away, at dawn clear hills 26


@pytest.mark.parametrize(("height", "width"), [(384, 256), (256, 384), (384, 384)])
@pytest.mark.parametrize("model", LEAST)
def test_other_sizes_show_what_is_asked_in_its_colours(model: str, height: int, width: int) -> None:
    pipeline = artist(model)
    settings = replace(default_settings(pipeline), height=height, width=width)
    (picture,) = draw(pipeline, ["a red circle on a blue background"], [1], settings)
    view = look(picture)
    assert picture.size == (width, height)
    assert (view.background, main_colour(picture)) == ("blue", "red")
    if model == "sketch":
        assert [found.overlap > 0.85 for found in view.objects] == [True]
