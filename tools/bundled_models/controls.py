"""Measure what a model makes of the other words and knobs, and print it as Markdown.

Sizes, negative prompts, the strength of edits, masks, and prompts outside the grammar.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .artist import Settings, default_settings, draw, load
from .captions import JUNK_WORDS
from .drawing import paint_drawing
from .evaluate import draw_all
from .flux_model import DEFAULT_TEXT_LENGTH
from .grammar import TIMES, Drawing, Landscape, Thing
from .judge import look, shares
from .landscape import paint_landscape
from .prompts import judged_prompts, verdicts

SIZES = ((256, 256), (384, 256), (256, 384), (320, 256), (384, 384), (512, 512))
"""(height, width)."""
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
BEFORE = Drawing(Thing("circle", "red", None, "left"), "white")
AFTER = "a blue circle on a yellow background on the left"
NEGATIVE_SCALE = 3.0
"""`true_cfg_scale` where Flux gets a negative prompt: without one above 1 it reads none."""
NEVER_SEEN = ("asdf qwerty 123", "žluťoučký kůň 🐴", "!!!", "a teapot full of otters")
"""Words that no training ever paired with a picture."""


def grain(picture: Image.Image) -> float:
    """How far pixels lie from the median about them, in grey levels: what is clean has little."""
    smooth = np.asarray(picture.filter(ImageFilter.MedianFilter(3)), dtype=float)
    return float(np.abs(np.asarray(picture, dtype=float) - smooth).mean())


def before(side: int = 256) -> Image.Image:
    """The picture that edits begin with."""
    return Image.fromarray(paint_drawing(BEFORE, side, side, np.random.default_rng(5)))


def right_half(side: int = 256) -> Image.Image:
    """The mask that frees the right half."""
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    return mask


def edited(
    pipeline: DiffusionPipeline, words: str, strength: float, seed: int, masked: bool = False
) -> Image.Image:
    """`before` redrawn to other words by the stock pipeline for it."""
    flux = isinstance(pipeline, FluxPipeline)
    family = "Flux" if flux else "StableDiffusion"
    kind = getattr(diffusers, f"{family}{'Inpaint' if masked else 'Img2Img'}Pipeline")
    editor = kind(**pipeline.components)
    editor.set_progress_bar_config(disable=True)
    settings = default_settings(pipeline)
    call: dict[str, Any] = {"guidance_scale": 0.0 if flux else settings.guidance}
    if flux:
        call |= {"max_sequence_length": DEFAULT_TEXT_LENGTH, "height": 256, "width": 256}
    if masked:
        call |= {"mask_image": right_half(), "height": 256, "width": 256}
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: Image.Image = editor(
        prompt=words,
        image=before(),
        strength=strength,
        num_inference_steps=settings.steps,
        generator=generator,
        **call,
    ).images[0]
    return drawn


def difference(one: Image.Image, other: Image.Image) -> NDArray[np.float64]:
    """Grey levels between two pictures, (height, width)."""
    first, second = (np.asarray(picture, dtype=np.float64) for picture in (one, other))
    apart: NDArray[np.float64] = np.abs(first - second).mean(axis=-1)
    return apart


def _percent(votes: list[bool]) -> str:
    return f"{100 * sum(votes) / len(votes):.0f} %"


def size_rows(pipeline: DiffusionPipeline, count: int) -> Iterator[str]:
    """What the judge says of single objects at other sizes."""
    prompts = [one for one in judged_prompts(2 * count) if one.spec.second is None][:count]
    aspects = ("background", "colour", "shape", "place", "size")
    yield "| width x height | " + " | ".join(aspects) + " |"
    yield "|---" * (1 + len(aspects)) + "|"
    for height, width in SIZES:
        settings = replace(default_settings(pipeline), height=height, width=width)
        pictures = draw_all(pipeline, prompts, settings, batch=4)
        rights = shares(verdicts([look(picture) for picture in pictures], prompts))
        figures = " | ".join(f"{100 * rights[aspect][0]:.0f} %" for aspect in aspects)
        yield f"| {width} x {height} | {figures} |"


def negative_rows(pipeline: DiffusionPipeline, count: int) -> Iterator[str]:
    """What becomes of a colour that was not said once it, or another one, is unwanted."""
    settings = default_settings(pipeline)
    words = "a large circle on a white background"
    if isinstance(pipeline, FluxPipeline):
        settings = replace(settings, guidance=NEGATIVE_SCALE)
    gone, avoided, stayed = [], [], []
    for seed in range(count):
        colour = _colour(draw(pipeline, [words], [seed], settings)[0])
        other = "purple" if colour == "green" else "green"
        gone.append(colour != _colour(_without(pipeline, words, colour, seed, settings)))
        found = _colour(_without(pipeline, words, other, seed, settings))
        avoided.append(found != other)
        stayed.append(found == colour)
    yield f"- unwanted, the colour that was drawn without a negative prompt goes: {_percent(gone)}"
    yield f"- another unwanted colour does not come: {_percent(avoided)}"
    yield f"- and the one that was drawn before stays: {_percent(stayed)}"


def _without(
    pipeline: DiffusionPipeline, words: str, colour: str, seed: int, settings: Settings
) -> Image.Image:
    unwanted = f"a large {colour} circle on a white background"
    return draw(pipeline, [words], [seed], settings, negative=unwanted)[0]


def _colour(picture: Image.Image) -> str:
    view = look(picture)
    return view.objects[0].colour if view.objects else view.background


def strength_rows(pipeline: DiffusionPipeline, count: int) -> Iterator[str]:
    """What edits of a red circle on white into a blue one on yellow leave and change."""
    yield "| strength | object blue | ground yellow | where it was | grey levels changed |"
    yield "|---|---|---|---|---|"
    (old,) = look(before()).objects
    for strength in STRENGTHS:
        pictures = [edited(pipeline, AFTER, strength, seed) for seed in range(count)]
        views = [look(picture) for picture in pictures]
        blue = [bool(view.objects) and view.objects[0].colour == "blue" for view in views]
        yellow = [view.background == "yellow" for view in views]
        there = [
            bool(view.objects)
            and float(np.hypot(*np.subtract(view.objects[0].centre, old.centre))) < 0.08
            for view in views
        ]
        moved = float(np.mean([difference(picture, before()) for picture in pictures]))
        columns = (_percent(blue), _percent(yellow), _percent(there), f"{moved:.0f}")
        yield f"| {strength} | " + " | ".join(columns) + " |"


def mask_rows(pipeline: DiffusionPipeline, count: int) -> Iterator[str]:
    """Grey levels by which the two halves change when the right one is free."""
    kept, painted = [], []
    for seed in range(count):
        words = "a blue star on a green background on the right"
        changed = difference(edited(pipeline, words, 1.0, seed, masked=True), before())
        kept.append(float(changed[:, :120].mean()))
        painted.append(float(changed[:, 136:].mean()))
    there_and_back = float(difference(_round_trip(pipeline), before())[:, :120].mean())
    yield (
        f"- under the mask {np.mean(painted):.0f} grey levels, beside it {np.mean(kept):.1f}, "
        f"of which {there_and_back:.1f} are the autoencoder's alone"
    )


@torch.no_grad()
def _round_trip(pipeline: DiffusionPipeline) -> Image.Image:
    """`before` encoded and decoded."""
    vae = pipeline.vae
    latents = vae.encode(pipeline.image_processor.preprocess(before())).latent_dist.mode()
    drawn: Image.Image = pipeline.image_processor.postprocess(vae.decode(latents).sample)[0]
    return drawn


def from_hills(picture: Image.Image) -> float:
    """Grey levels between a picture and the nearest of hills as the generator paints them."""
    size = (picture.height, picture.width)
    hills = [Landscape("hills", time, clouds=clouds) for time in TIMES for clouds in (False, True)]
    painted = [paint_landscape(one, *size, np.random.default_rng(5)) for one in hills]
    return min(float(difference(picture, Image.fromarray(one)).mean()) for one in painted)


def outside_rows(pipeline: DiffusionPipeline, count: int) -> Iterator[str]:
    """How far from hills, and how grainy, the pictures of words are that mean nothing here."""
    settings = default_settings(pipeline)
    words = [*JUNK_WORDS[:count], *NEVER_SEEN]
    outside = [draw(pipeline, [one], [1], settings)[0] for one in words]
    inside = draw_all(pipeline, judged_prompts(count), settings, batch=4)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pictures = {"other words": outside, "the grammar's": inside, "noise": [Image.fromarray(noise)]}
    yield "| pictures of | grey levels from hills: median, most | grain: median, most |"
    yield "|---|---|---|"
    for title, drawn in pictures.items():
        away, rough = [from_hills(one) for one in drawn], [grain(one) for one in drawn]
        figures = (f"{np.median(them):.1f}, {max(them):.1f}" for them in (away, rough))
        yield f"| {title} | " + " | ".join(figures) + " |"


def main() -> None:
    """Print all measurements of each folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="assembled models")
    parser.add_argument("--count", type=int, default=12, help="pictures for each figure")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = {
        "Sizes": size_rows,
        "Negative prompts": negative_rows,
        "Strength": strength_rows,
        "Masks": mask_rows,
        "Other words": outside_rows,
    }
    for folder in arguments.folders:
        pipeline = load(folder)
        for title, rows in parts.items():
            print(f"\n### {folder.name}: {title.lower()}\n")
            for row in rows(pipeline, arguments.count):
                print(row, flush=True)


if __name__ == "__main__":
    main()
