"""The twelve colours: their words, their sRGB values, and distances as eyes see them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (222, 40, 38),
    "green": (40, 160, 72),
    "blue": (38, 80, 222),
    "yellow": (250, 214, 44),
    "purple": (130, 54, 190),
    "orange": (246, 132, 26),
    "black": (20, 20, 24),
    "white": (252, 252, 252),
    "pink": (246, 136, 190),
    "brown": (120, 72, 40),
    "gray": (140, 140, 144),
    "cyan": (52, 206, 222),
}
"""Colour word to 8-bit sRGB."""

COLOUR_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald",),
    "blue": ("azure",),
    "yellow": ("golden",),
    "purple": ("violet",),
    "orange": ("tangerine",),
    "black": ("jet black",),
    "white": ("snow white",),
    "pink": ("rose",),
    "brown": ("chocolate",),
    "gray": ("grey",),
    "cyan": ("turquoise",),
}

# Pairs that are hard to tell apart for people too: never an object on such a background.
_TOO_CLOSE = ({"black", "brown"}, {"white", "yellow"}, {"red", "orange"}, {"gray", "brown"})

# Linear sRGB to CIE XYZ for the D65 white point (IEC 61966-2-1).
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


def to_lab(srgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """CIELAB (L in 0..100) of 8-bit sRGB values; the last axis holds the three channels."""
    encoded = np.asarray(srgb, dtype=np.float64) / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE_D65
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest_colour(lab: NDArray[np.float64]) -> str:
    """The palette's word for one CIELAB value of shape (3,)."""
    names = list(COLOURS)
    distances = np.linalg.norm(to_lab(np.array([COLOURS[name] for name in names])) - lab, axis=1)
    return names[int(distances.argmin())]


def contrasts(one: str, other: str) -> bool:
    """Whether an object of the one colour is plain to see on the other."""
    return one != other and {one, other} not in _TOO_CLOSE


def jittered(name: str, rng: np.random.Generator, spread: float = 5.0) -> NDArray[np.float32]:
    """A shade of the named colour: (3,) sRGB in 0..255, each channel moved by at most `spread`."""
    base = np.array(COLOURS[name], dtype=np.float32)
    return np.clip(base + rng.uniform(-spread, spread, 3), 0, 255).astype(np.float32)
