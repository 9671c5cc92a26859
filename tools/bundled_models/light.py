"""The light of four times of day: sky, orb, and what the light does to the ground's colours."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Light:
    """Colours are 8-bit sRGB; sky holds zenith, middle and horizon.

    The ground's colours are multiplied by `tint` (shares) and then mixed with `haze`, the more the
    farther away a layer lies.
    """

    sky: tuple[Colour, Colour, Colour]
    orb: Colour
    glow: Colour
    cloud: Colour
    tint: tuple[float, float, float]
    haze: Colour

    def on(self, colour: Colour, distance: float) -> NDArray[np.float32]:
        """How a ground colour looks at a distance from 0 (here) to 1 (the horizon)."""
        lit = np.array(colour, np.float32) * np.array(self.tint, np.float32)
        return lit + 0.62 * distance * (np.array(self.haze, np.float32) - lit)


LIGHT: Mapping[str, Light] = {
    "day": Light(
        sky=((66, 142, 230), (138, 196, 246), (220, 240, 252)),
        orb=(255, 240, 150),
        glow=(255, 250, 215),
        cloud=(255, 255, 255),
        tint=(1.0, 1.0, 1.0),
        haze=(186, 216, 240),
    ),
    "sunset": Light(
        sky=((72, 44, 118), (216, 92, 96), (255, 178, 82)),
        orb=(255, 226, 120),
        glow=(255, 200, 104),
        cloud=(250, 160, 130),
        tint=(0.50, 0.33, 0.36),
        haze=(206, 96, 84),
    ),
    "night": Light(
        sky=((8, 12, 38), (18, 30, 74), (46, 64, 118)),
        orb=(246, 242, 214),
        glow=(120, 140, 196),
        cloud=(74, 86, 128),
        tint=(0.17, 0.21, 0.32),
        haze=(44, 62, 112),
    ),
    "dawn": Light(
        sky=((126, 152, 216), (232, 184, 206), (255, 222, 196)),
        orb=(255, 246, 220),
        glow=(255, 232, 206),
        cloud=(255, 232, 232),
        tint=(0.72, 0.62, 0.70),
        haze=(226, 184, 196),
    ),
}
