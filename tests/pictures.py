"""Looks at pictures: colours of places, in plain RGB distance."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = {
    "red": (214, 38, 32),
    "white": (252, 252, 252),
    "blue": (40, 90, 215),
    "green": (40, 150, 60),
    "yellow": (250, 215, 45),
    "black": (18, 18, 18),
}


def pixels(data: bytes) -> NDArray[np.uint8]:
    """Height x width x 3."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def from_base64(text: str) -> NDArray[np.uint8]:
    return pixels(base64.b64decode(text))


def colour_at(picture: NDArray[np.uint8], x: float, y: float, size: int = 16) -> str:
    """The name of the nearest known colour around a place; x and y are shares of the sides."""
    height, width = picture.shape[:2]
    left, top = int(x * (width - size)), int(y * (height - size))
    mean = picture[top : top + size, left : left + size].reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


def corners(picture: NDArray[np.uint8]) -> set[str]:
    return {colour_at(picture, x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)}
