"""Captions as the trainings see them: some say nothing, and some mean nothing."""

import string
from functools import cache

import numpy as np

from .captions import JUNK_WORDS, caption
from .grammar import Landscape, Specification, pick
from .vocabulary import COMMON_WORDS, grammar_words

EMPTY = 0.10
"""The share of empty captions, which guidance leads away from."""
OUTSIDE = 0.4
"""The share of captions of hills that are outside the grammar.

Whatever else is asked for gets hills, then, in the light of some time of day: told that such words
may mean anything, a denoiser this small draws something between all pictures.
"""


@cache
def _other_words() -> tuple[str, ...]:
    known = grammar_words()
    return tuple(word for word in COMMON_WORDS if word not in known)


def outside_caption(rng: np.random.Generator) -> str:
    """Words that mean nothing here: other things, common words in a row, or mere letters."""
    kind = rng.random()
    if kind < 0.3:
        return pick(rng, JUNK_WORDS)
    count = int(rng.integers(1, 6))
    if kind < 0.7:
        return " ".join(pick(rng, _other_words()) for _ in range(count))
    letters = string.ascii_letters + string.digits + " .,!?-"
    return "".join(pick(rng, letters) for _ in range(3 * count)).strip() or "?"


def training_caption(spec: Specification, rng: np.random.Generator) -> str:
    """A caption for a picture of the specification."""
    if rng.random() < EMPTY:
        return ""
    if isinstance(spec, Landscape) and spec.terrain == "hills" and rng.random() < OUTSIDE:
        return outside_caption(rng)
    return caption(spec, rng)
