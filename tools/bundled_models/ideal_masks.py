"""Which of the nine ideal shapes a mask is: the best match after moving and scaling each."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .shapes import SHAPES, Field, pixel_grid

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Match:
    """An ideal shape laid over a mask: centre (x, y) and radius in pixels, overlap 0..1."""

    shape: str
    centre: tuple[float, float]
    radius: float
    overlap: float


FINENESS = 100
"""Points across one radius of the ideal shapes."""
REACH = 1.5
"""How far the table of an ideal shape reaches from its centre, in radii: beyond its border."""


@cache
def _unit_mask(shape: str) -> Mask:
    """The shape at radius 1 as a table, so that laying it over a mask is looking things up."""
    side = round(2 * REACH * FINENESS)
    x, y = (axis / FINENESS - REACH for axis in pixel_grid(side, side))
    return SHAPES[shape](x, y) < 0


@cache
def _unit_moments(shape: str) -> tuple[float, float, float]:
    """Area, and centre of mass (x, y), of the shape at radius 1."""
    inside = _unit_mask(shape)
    y, x = ((axis + 0.5) / FINENESS - REACH for axis in np.nonzero(inside))
    return float(inside.sum()) / FINENESS**2, float(x.mean()), float(y.mean())


def _overlap(
    shape: str, mask: Mask, grid: tuple[Field, Field], centre: tuple[float, float], radius: float
) -> float:
    unit = _unit_mask(shape)
    x, y = (
        np.clip(((axis - middle) / radius + REACH) * FINENESS, 0, len(unit) - 1).astype(np.intp)
        for axis, middle in zip(grid, centre, strict=True)
    )
    ideal = unit[y, x]
    return float((ideal & mask).sum() / max(1, (ideal | mask).sum()))


def _fit(shape: str, mask: Mask, grid: tuple[Field, Field]) -> Match:
    """From equal area and centre of mass, a few ever finer steps of place and scale."""
    area, unit_x, unit_y = _unit_moments(shape)
    radius = float(np.sqrt(mask.sum() / area)) * float(grid[0][0, 1] - grid[0][0, 0])
    x = float(grid[0][mask].mean()) - unit_x * radius
    y = float(grid[1][mask].mean()) - unit_y * radius
    best = Match(shape, (x, y), radius, _overlap(shape, mask, grid, (x, y), radius))
    for pace in (0.08, 0.04):
        start = best
        for dx, dy, grow in (
            *((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)),
            *((0, -1, 1), (0, 1, 1), (0, -1, -1), (0, 1, -1)),
        ):
            reach = pace * start.radius
            centre = (start.centre[0] + dx * reach, start.centre[1] + dy * reach)
            grown = start.radius * (1 + grow * pace)
            overlap = _overlap(shape, mask, grid, centre, grown)
            if overlap > best.overlap:
                best = Match(shape, centre, grown, overlap)
    return best


def best_match(mask: Mask) -> Match:
    """The ideal shape that overlaps the mask (height, width) best."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = 4
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    window = mask[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
    # Large masks are thinned out: fifty pixels across tell the nine shapes apart.
    stride = max(1, round(max(window.shape) / 64))
    x, y = pixel_grid(*window.shape)
    thin = (x[::stride, ::stride] + left, y[::stride, ::stride] + top)
    matches = [_fit(shape, window[::stride, ::stride], thin) for shape in SHAPES]
    return max(matches, key=lambda match: match.overlap)
