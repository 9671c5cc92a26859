"""The nine shapes as signed distances: negative inside, in units of the picture's pixels."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Distance = Callable[[Field, Field], Field]

SHAPE_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "circle": ("disc", "ball"),
    "square": ("box",),
    "triangle": (),
    "star": (),
    "heart": (),
    "ring": ("donut", "hoop"),
    "diamond": ("rhombus",),
    "cross": ("plus",),
    "crescent": (),
}


def polygon(corners: NDArray[np.float32]) -> Distance:
    """Exact distance to a closed polygon; corners has shape (n, 2), x right and y down."""

    def distance(x: Field, y: Field) -> Field:
        nearest = np.full(x.shape, np.inf, dtype=np.float32)
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
            if ey != 0:
                crosses = (ay <= y) != (by <= y)
                inside ^= crosses & (x < ax + (y - ay) * (ex / ey))
        return np.where(inside, -1.0, 1.0).astype(np.float32) * np.sqrt(nearest)

    return distance


def _circle(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 0.95


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.74) - 0.24


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 0.98, 0.8 - np.hypot(x - 0.42, y + 0.16))


def _star_corners() -> NDArray[np.float32]:
    turn = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.08, 0.45)
    return np.stack([reach * np.sin(turn), -reach * np.cos(turn) + 0.08], axis=1)


def _heart_corners() -> NDArray[np.float32]:
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    across = 16 * np.sin(turn) ** 3
    up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([across / 16.5, -(up + 2.5) / 16.5], axis=1)


def _corners(*points: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(points, dtype=np.float32)


_ARM = 0.32

SHAPES: Mapping[str, Distance] = {
    "circle": _circle,
    "square": polygon(_corners((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84))),
    "triangle": polygon(_corners((0, -0.92), (1.02, 0.84), (-1.02, 0.84))),
    "star": polygon(_star_corners().astype(np.float32)),
    "heart": polygon(_heart_corners().astype(np.float32)),
    "ring": _ring,
    "diamond": polygon(_corners((0, -1.08), (0.92, 0), (0, 1.08), (-0.92, 0))),
    "cross": polygon(
        _corners(
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        )
    ),
    "crescent": _crescent,
}
"""Shape word to its distance at radius 1 around the origin."""


def pixel_grid(height: int, width: int) -> tuple[Field, Field]:
    """Pixel centres in pixels: x and y, each of shape (height, width)."""
    x = np.arange(width, dtype=np.float32) + 0.5
    y = np.arange(height, dtype=np.float32) + 0.5
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def coverage(
    shape: str, grid: tuple[Field, Field], centre: tuple[float, float], radius: float
) -> Field:
    """How much of each pixel the shape covers, 0..1, from its distance at the pixel's centre.

    centre is (x, y) and radius half the shape's extent, all in pixels.
    """
    x, y = (grid[0] - centre[0]) / radius, (grid[1] - centre[1]) / radius
    return np.clip(0.5 - SHAPES[shape](x, y) * radius, 0, 1)
