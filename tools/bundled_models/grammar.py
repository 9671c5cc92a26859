"""What can be asked for: specifications of pictures, and the words that ask for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from .palette import COLOUR_SYNONYMS, COLOURS, contrasts
from .shapes import SHAPE_SYNONYMS, SHAPES

Place = Literal["left", "right", "top", "bottom"]
Size = Literal["small", "large"]
Relation = Literal["left of", "right of", "above", "below", "and"]

PLACES: tuple[Place, ...] = ("left", "right", "top", "bottom")
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below", "and")
TERRAINS = ("mountains", "snowy mountains", "hills", "sea", "desert", "forest")
TIMES = ("day", "sunset", "night", "dawn")

T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One object; None stands for a word the caption does not say."""

    shape: str
    colour: str | None = None
    size: Size | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Drawing:
    """One object, or two in a relation, on a flat background."""

    first: Thing
    background: str | None = None
    second: Thing | None = None
    relation: Relation | None = None


@dataclass(frozen=True)
class Landscape:
    """A terrain at a time of day, and what the sky shows."""

    terrain: str
    time: str
    moon: bool = False
    clouds: bool = False
    stars: bool = False


Specification = Drawing | Landscape


def is_held_out(spec: Specification) -> bool:
    """Whether training never sees this combination: a tenth of them, by a hash of what is said.

    A single object is held out by colour, shape and background; two by both colours and shapes.
    """
    if isinstance(spec, Landscape) or spec.first.colour is None:
        return False
    words = [spec.first.colour, spec.first.shape]
    if spec.second is None:
        if spec.background is None:
            return False
        words.append(spec.background)
    else:
        words += [spec.second.colour or "", spec.second.shape]
    return hashlib.sha256(" ".join(words).encode()).digest()[0] < 26


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def sample_single(rng: np.random.Generator, plain: float = 0.1) -> Drawing:
    """One object; with probability `plain` each, colour and background are left unsaid."""
    shape, colour = pick(rng, list(SHAPES)), pick(rng, list(COLOURS))
    background = pick(rng, [name for name in COLOURS if contrasts(colour, name)])
    size: Size | None = pick(rng, (None, None, "small", "large"))
    place = pick(rng, PLACES) if rng.random() < 0.4 else None
    said_colour = None if rng.random() < plain else colour
    said_background = None if rng.random() < 1.5 * plain else background
    return Drawing(Thing(shape, said_colour, size, place), said_background)


def sample_pair(rng: np.random.Generator) -> Drawing:
    """Two objects of different colours, beside or above each other."""
    colours = list(COLOURS)
    while True:
        one, other, background = (pick(rng, colours) for _ in range(3))
        if contrasts(one, other) and contrasts(one, background) and contrasts(other, background):
            break
    shapes = list(SHAPES)
    said = None if rng.random() < 0.25 else background
    first, second = Thing(pick(rng, shapes), one), Thing(pick(rng, shapes), other)
    return Drawing(first, said, second, pick(rng, RELATIONS))


def sample_landscape(rng: np.random.Generator) -> Landscape:
    """Any terrain at any time; moon and stars belong to the dark, clouds to the light."""
    terrain, time = pick(rng, TERRAINS), pick(rng, TIMES)
    night = time == "night"
    return Landscape(
        terrain,
        time,
        moon=bool(rng.random() < (0.6 if night else 0.0)),
        clouds=bool(rng.random() < (0.15 if night else 0.4)),
        stars=bool(rng.random() < (0.6 if night else 0.0)),
    )


def sample_training(rng: np.random.Generator) -> Specification:
    """A specification as the training mixes them, never one that is held out."""
    while True:
        kind = rng.random()
        if kind < 0.56:
            spec: Specification = sample_single(rng)
        elif kind < 0.80:
            spec = sample_pair(rng)
        else:
            spec = sample_landscape(rng)
        if not is_held_out(spec):
            return spec


def colour_word(rng: np.random.Generator, colour: str) -> str:
    """The colour's word, now and then a synonym."""
    synonyms = COLOUR_SYNONYMS[colour]
    return pick(rng, synonyms) if rng.random() < 0.12 else colour


def shape_word(rng: np.random.Generator, shape: str) -> str:
    """The shape's word, now and then a synonym."""
    synonyms = SHAPE_SYNONYMS[shape]
    return pick(rng, synonyms) if synonyms and rng.random() < 0.12 else shape
