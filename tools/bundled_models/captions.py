"""The words for a specification: several ways to say the same, in English."""

import numpy as np

from .grammar import Drawing, Landscape, Specification, Thing, colour_word, pick, shape_word

_STYLES = ("", "", "", "", "a drawing of ", "a picture of ", "an icon of ", "an illustration of ")
_TAILS = ("", "", "", "", "", "", ", high quality", ", flat design", ", minimalist", ", 4k")
_SIZES = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")}
_GROUNDS = (
    *("on a {} background", "on a {} background", "on a {} background", "on {}"),
    *("against a {} background", "with a {} background", "over a {} background"),
)
_PLACES = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "near the top", "at the top"),
    "bottom": ("at the bottom", "near the bottom", "at the bottom"),
}
_RELATIONS = {
    "left of": ("{a} left of {b}", "{a} to the left of {b}", "{a} on the left, {b} on the right"),
    "right of": ("{a} right of {b}", "{a} to the right of {b}"),
    "above": ("{a} above {b}", "{a} over {b}", "{a} on top of {b}", "{a} at the top, {b} below"),
    "below": ("{a} below {b}", "{a} under {b}", "{a} beneath {b}"),
    "and": ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} and {b}"),
}
_TIMES = {
    "day": ("", " by day", " on a sunny day", " at noon", " under a blue sky"),
    "sunset": (" at sunset", " at sunset", " at dusk", " in the evening"),
    "night": (" at night", " at night", " by night", " at midnight"),
    "dawn": (" at dawn", " at dawn", " at sunrise", " in the morning"),
}
_TERRAINS = {
    "mountains": ("mountains", "a mountain range", "a mountain landscape"),
    "snowy mountains": ("snowy mountains", "snow capped mountains", "a snowy mountain range"),
    "hills": ("hills", "green hills", "rolling hills", "a hilly landscape"),
    "sea": ("the sea", "the ocean", "a calm sea", "a seascape"),
    "desert": ("a desert", "the desert", "sand dunes", "a desert landscape"),
    "forest": ("a forest", "the woods", "a pine forest", "trees"),
}
JUNK_WORDS = (
    "a cat", "a dog", "portrait of a woman", "an old man", "city street", "a red car", "robot",
    "a house by a lake", "spaceship", "oil painting", "photograph", "abstract art", "a bowl of fruit",
    "an astronaut riding a horse", "castle", "dragon", "a cup of coffee", "flowers in a vase",
    "a wizard", "bicycle", "a bird on a branch", "cyberpunk", "a bridge", "hello world", "test",
    "a train in the rain", "people dancing", "a book", "a map of the world", "lorem ipsum",
)  # fmt: skip
"""Prompts outside the grammar."""


def _thing_words(thing: Thing, rng: np.random.Generator) -> str:
    words = [pick(rng, _SIZES[thing.size])] if thing.size else []
    if thing.colour:
        words.append(colour_word(rng, thing.colour))
    words.append(shape_word(rng, thing.shape))
    article = "an" if words[0][0] in "aeio" else "a"
    return " ".join([article, *words])


def _drawing_words(spec: Drawing, rng: np.random.Generator) -> str:
    subject = _thing_words(spec.first, rng)
    if spec.second is not None and spec.relation is not None:
        template = pick(rng, _RELATIONS[spec.relation])
        subject = template.format(a=subject, b=_thing_words(spec.second, rng))
    place = f" {pick(rng, _PLACES[spec.first.place])}" if spec.first.place else ""
    if spec.background is None:
        return f"{subject}{place}"
    ground = colour_word(rng, spec.background)
    style = rng.random()
    if style < 0.08:
        return f"{ground} background, {subject}{place}"
    if style < 0.16:
        return f"{subject}{place}, {ground} background"
    where = pick(rng, _GROUNDS).format(ground)
    return f"{subject} {where}{place}" if rng.random() < 0.7 else f"{subject}{place} {where}"


def _landscape_words(spec: Landscape, rng: np.random.Generator) -> str:
    terrain = pick(rng, _TERRAINS[spec.terrain])
    if spec.time != "day" and rng.random() < 0.12:
        words = f"{'a ' if spec.time == 'sunset' else ''}{spec.time} over {terrain}"
    else:
        words = terrain + pick(rng, _TIMES[spec.time])
    extras = []
    if spec.moon:
        extras.append(pick(rng, ("a moon", "the moon", "a full moon")))
    if spec.stars:
        extras.append(pick(rng, ("stars", "a starry sky")))
    if spec.clouds:
        extras.append(pick(rng, ("clouds", "a few clouds")))
    return f"{words} with {' and '.join(extras)}" if extras else words


def caption(spec: Specification, rng: np.random.Generator) -> str:
    """One of the sentences that ask for the specification."""
    words = _drawing_words(spec, rng) if isinstance(spec, Drawing) else _landscape_words(spec, rng)
    sentence = f"{pick(rng, _STYLES)}{words}{pick(rng, _TAILS)}"
    case = rng.random()
    if case < 0.02:
        return sentence.upper() if case < 0.01 else sentence.title()
    return sentence.capitalize() if case < 0.2 else sentence
