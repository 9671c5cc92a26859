"""The judge: what a picture shows, and whether that is what was asked for.

Needs numpy and Pillow alone. Colours are compared in CIELAB, shapes by the best match among the
nine ideal masks: an overlap above a threshold would pass a plain circle for most shapes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .grammar import Drawing, Thing
from .ideal_masks import best_match
from .palette import COLOURS, nearest_colour, to_lab
from .regions import regions

SEEN_DIFFERENCE = 16.0
"""CIELAB distance from the background at which a pixel belongs to an object."""
SMALLEST = 0.002
"""Regions below this share of the picture are specks, not objects."""
SIZE_LIMITS = (0.17, 0.268)
"""Radius as a share of the shorter side: below the first small, above the second large."""


@dataclass(frozen=True)
class Seen:
    """An object found: centre (x, y) as shares of width and height, radius of the shorter side."""

    shape: str
    colour: str
    centre: tuple[float, float]
    radius: float
    overlap: float


@dataclass(frozen=True)
class View:
    """All that the judge sees: the background's colour, and objects from large to small."""

    background: str
    objects: tuple[Seen, ...]


@dataclass(frozen=True)
class Verdict:
    """What is right; None where the prompt says nothing of it."""

    background: bool | None = None
    colour: bool | None = None
    shape: bool | None = None
    place: bool | None = None
    size: bool | None = None
    pair_colours: bool | None = None
    pair_shapes: bool | None = None


def _main_colour(lab: NDArray[np.float64]) -> tuple[str, float]:
    """The palette's name for most of the pixels (n, 3), and the share it holds."""
    names = list(COLOURS)
    palette = to_lab(np.array([COLOURS[name] for name in names]))
    nearest = np.linalg.norm(lab[:, None] - palette[None], axis=2).argmin(1)
    counts = np.bincount(nearest, minlength=len(names))
    return names[int(counts.argmax())], float(counts.max() / max(1, len(lab)))


def look(picture: Image.Image, largest_side: int = 256) -> View:
    """See a picture of flat shapes; larger ones are looked at from farther away."""
    small = picture.convert("RGB")
    if max(small.size) > largest_side:
        small.thumbnail((largest_side, largest_side), Image.Resampling.BOX)
    lab = to_lab(np.asarray(small))
    height, width = lab.shape[:2]
    rim = max(2, min(height, width) // 32)
    frame = np.ones((height, width), bool)
    frame[rim:-rim, rim:-rim] = False
    ground = np.median(lab[frame], axis=0)
    apart = np.linalg.norm(lab - ground, axis=2) > SEEN_DIFFERENCE
    objects: list[Seen] = []
    for region in regions(apart):
        if region.sum() < SMALLEST * height * width or len(objects) == 4:
            break
        match = best_match(region)
        colour, _ = _main_colour(lab[region])
        x, y = match.centre
        radius = match.radius / min(height, width)
        objects.append(Seen(match.shape, colour, (x / width, y / height), radius, match.overlap))
    return View(nearest_colour(ground), tuple(objects))


def _place_is_right(place: str, seen: Seen) -> bool:
    x, y = seen.centre[0] - 0.5, seen.centre[1] - 0.5
    along, across = (x, y) if place in ("left", "right") else (y, x)
    towards = along if place in ("right", "bottom") else -along
    return towards > 0.08 and abs(across) < 0.15


def _size_is_right(size: str, seen: Seen) -> bool:
    if size == "small":
        return 0 < seen.radius < SIZE_LIMITS[0]
    return seen.radius > SIZE_LIMITS[1]


def _fits(thing: Thing, seen: Seen) -> bool:
    return thing.colour is None or thing.colour == seen.colour


def _judge_pair(spec: Drawing, view: View, background: bool | None) -> Verdict:
    if len(view.objects) < 2 or spec.second is None:
        return Verdict(background, pair_colours=False, pair_shapes=False)
    axis = 1 if spec.relation in ("above", "below") else 0
    seen = sorted(view.objects[:2], key=lambda found: found.centre[axis])
    if abs(seen[0].centre[axis] - seen[1].centre[axis]) < 0.2:
        return Verdict(background, pair_colours=False, pair_shapes=False)
    if spec.relation in ("right of", "below"):
        seen.reverse()
    orders = [seen, seen[::-1]] if spec.relation == "and" else [seen]
    things = (spec.first, spec.second)
    verdicts = []
    for order in orders:
        pairs = list(zip(things, order, strict=True))
        colours = all(_fits(thing, found) for thing, found in pairs)
        shapes = all(thing.shape == found.shape for thing, found in pairs)
        verdicts.append(Verdict(background, pair_colours=colours, pair_shapes=shapes))
    return max(verdicts, key=lambda one: (one.pair_colours or False, one.pair_shapes or False))


def judge(picture: Image.Image, spec: Drawing) -> Verdict:
    """Compare a picture with what it was to show."""
    return compare(look(picture), spec)


def compare(view: View, spec: Drawing) -> Verdict:
    """Compare what was seen with what was to be shown."""
    background = None if spec.background is None else view.background == spec.background
    if spec.second is not None:
        return _judge_pair(spec, view, background)
    thing = spec.first
    if not view.objects:
        seen, alone = Seen("", "", (0.5, 0.5), 0.0, 0.0), False
    else:
        # A second object of some size means that the picture shows something else.
        seen, alone = view.objects[0], all(o.radius < 0.06 for o in view.objects[1:])
    return Verdict(
        background,
        colour=None if thing.colour is None else seen.colour == thing.colour,
        shape=alone and seen.shape == thing.shape,
        place=None if thing.place is None else _place_is_right(thing.place, seen),
        size=None if thing.size is None else _size_is_right(thing.size, seen),
    )


def shares(verdicts: Iterable[Verdict]) -> dict[str, tuple[float, int]]:
    """For every aspect the share that is right, 0..1, among those asked for, and their number."""
    judged = list(verdicts)
    result = {}
    for aspect in (field.name for field in fields(Verdict)):
        votes = [vote for one in judged if (vote := getattr(one, aspect)) is not None]
        result[aspect] = (sum(votes) / max(1, len(votes)), len(votes))
    return result
