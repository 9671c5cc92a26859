"""Pictures of drawings: anti-aliased shapes on a flat background, with numpy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grammar import Drawing, Specification, pick
from .landscape import paint_landscape
from .palette import COLOURS, contrasts, jittered
from .shapes import Field, coverage, pixel_grid

RADII = {"small": (0.128, 0.136), None: (0.208, 0.22), "large": (0.322, 0.338)}
"""Size word to the range of the radius, as a share of the picture's shorter side.

Narrow on purpose, as all that is left to chance here: the mean of all pictures that fit a caption is
what a denoiser learns first, and in a blurred mean a star is no star.
"""
PAIR_RADII = (0.172, 0.182)
PLACE_OFFSET = 0.26
"""How far a placed object's centre lies from the picture's centre, as a share of that side."""


@dataclass(frozen=True)
class Placed:
    """An object as drawn: centre (x, y) and radius in pixels, colour (3,) in 0..255."""

    shape: str
    centre: tuple[float, float]
    radius: float
    colour: NDArray[np.float32]


def _unsaid_background(colours: list[str]) -> str:
    """White where it can be seen, as on paper; black or blue otherwise."""
    for name in ("white", "black"):
        if all(contrasts(colour, name) for colour in colours):
            return name
    return "blue"


def _kept_inside(value: float, radius: float, side: int) -> float:
    margin = radius * 1.1 + 0.01 * side
    return float(np.clip(value, margin, max(side - margin, margin)))


def _single_centre(
    place: str | None, radius: float, height: int, width: int, rng: np.random.Generator
) -> tuple[float, float]:
    x, y = 0.5 + rng.uniform(-0.01, 0.01, 2)
    x += {"left": -PLACE_OFFSET, "right": PLACE_OFFSET}.get(place or "", 0.0)
    y += {"top": -PLACE_OFFSET, "bottom": PLACE_OFFSET}.get(place or "", 0.0)
    return _kept_inside(x * width, radius, width), _kept_inside(y * height, radius, height)


def layout(spec: Drawing, height: int, width: int, rng: np.random.Generator) -> list[Placed]:
    """Where and how large the objects of a drawing are; an unsaid colour is any that shows."""
    side = min(height, width)
    if spec.second is None:
        thing = spec.first
        shows = [c for c in COLOURS if spec.background is None or contrasts(c, spec.background)]
        colour = thing.colour or pick(rng, shows)
        radius = rng.uniform(*RADII[thing.size]) * side
        centre = _single_centre(thing.place, radius, height, width, rng)
        return [Placed(thing.shape, centre, radius, jittered(colour, rng))]
    stacked = spec.relation in ("above", "below")
    things = [spec.first, spec.second]
    if spec.relation in ("right of", "below"):
        things.reverse()
    placed = []
    gap = rng.uniform(0.245, 0.255)
    for sign, thing in zip((-1, 1), things, strict=True):
        radius = rng.uniform(*PAIR_RADII) * side
        wobble = rng.uniform(-0.007, 0.007)
        if stacked:
            centre = ((0.5 + wobble) * width, (0.5 + sign * gap) * height)
        else:
            centre = ((0.5 + sign * gap) * width, (0.5 + wobble) * height)
        placed.append(
            Placed(thing.shape, centre, radius, jittered(thing.colour or "black", rng)),
        )
    return placed


def paint_drawing(
    spec: Drawing, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The drawing as (height, width, 3) sRGB."""
    objects = layout(spec, height, width, rng)
    names = [thing.colour for thing in (spec.first, spec.second) if thing and thing.colour]
    background = spec.background or _unsaid_background(names)
    if spec.background is None and spec.first.colour is None:
        # Nothing is said of colour: paper white, unless the object happens to be white itself.
        background = "white" if objects[0].colour.min() < 235 else "black"
    canvas: Field = np.broadcast_to(jittered(background, rng), (height, width, 3)).copy()
    grid = pixel_grid(height, width)
    for thing in objects:
        share = coverage(thing.shape, grid, thing.centre, thing.radius)[..., None]
        canvas += share * (thing.colour - canvas)
    drawn: NDArray[np.uint8] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return drawn


def paint(
    spec: Specification, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Any specification as (height, width, 3) sRGB; the same rng draws the same picture."""
    if isinstance(spec, Drawing):
        return paint_drawing(spec, height, width, rng)
    return paint_landscape(spec, height, width, rng)
