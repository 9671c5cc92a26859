"""Connected regions of a mask, with numpy alone."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def _runs(row: Mask) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.view(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def regions(mask: Mask) -> list[Mask]:
    """The mask's regions (pixels joined by their sides), the largest first."""
    parent: list[int] = []
    runs: list[tuple[int, int, int]] = []

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    above: list[int] = []
    for row, line in enumerate(mask):
        here = []
        for start, stop in _runs(line):
            index = len(runs)
            runs.append((row, start, stop))
            parent.append(index)
            here.append(index)
            for other in above:
                if runs[other][1] < stop and start < runs[other][2]:
                    parent[root(index)] = root(other)
        above = here
    found: dict[int, Mask] = {}
    for index, (row, start, stop) in enumerate(runs):
        found.setdefault(root(index), np.zeros_like(mask))[row, start:stop] = True
    return sorted(found.values(), key=lambda region: -int(region.sum()))
