"""Batches for the trainings: latents from the shards' memory maps, captions made on the spot."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .dataset import from_json, shard_paths
from .grammar import Specification, pick
from .training_captions import training_caption

COMMON = (32, 32)
"""The latent size of a 256x256 picture, which most batches have."""

HALVED_WEIGHT = 3
"""How many halved latents stand for one whole."""


@dataclass(frozen=True)
class Mix:
    """What batches hold, all as shares of one."""

    pairs: float
    landscapes: float
    halved: float
    """Of the batches of common size, those at half resolution."""
    other_sizes: float
    """Of all batches, those of another size than the common one."""


@dataclass(frozen=True)
class Batch:
    """Latents (n, 4, height, width), not scaled, and what is said of them."""

    latents: torch.Tensor
    captions: list[str]
    landscape: torch.Tensor
    """Which of the pictures are landscapes: (n,) of bool."""
    halved: bool

    def first(self, count: int) -> "Batch":
        """The first pictures alone."""
        return Batch(
            self.latents[:count], self.captions[:count], self.landscape[:count], self.halved
        )


class LatentBatches:
    """Draws batches of one latent size each from all shards of a folder.

    The same rng over the same shards draws the same batches. Halved ones have their latents averaged
    2x2: a quarter of the work teaches what is where.
    """

    def __init__(self, folder: Path, batch: int) -> None:
        """`batch` counts latents of common size; smaller and larger ones are weighed by area."""
        self.batch = batch
        self._arrays: dict[tuple[int, int], list[NDArray[np.float16]]] = defaultdict(list)
        self._specs: dict[tuple[int, int], list[list[Specification]]] = defaultdict(list)
        self._kinds: dict[tuple[int, int], list[list[tuple[int, int]]]] = defaultdict(
            lambda: [[], [], []]
        )
        for path in shard_paths(folder):
            latents = np.load(path, mmap_mode="r")
            size = (latents.shape[2], latents.shape[3])
            self._arrays[size].append(latents)
            specs = json.loads(path.with_suffix(".json").read_text())
            self._specs[size].append([from_json(fields) for fields in specs])
            for row, fields in enumerate(specs):
                kind = 2 if "terrain" in fields else 0 if fields["second"] is None else 1
                self._kinds[size][kind].append((len(self._arrays[size]) - 1, row))
        self._others = sorted(size for size in self._arrays if size != COMMON)

    def __len__(self) -> int:
        """The number of pictures of all sizes."""
        return sum(len(shard) for shards in self._arrays.values() for shard in shards)

    def draw(self, rng: np.random.Generator, mix: Mix) -> Batch:
        """A batch of one size, its kinds of pictures in the mix's shares whatever the shards hold."""
        size = COMMON
        if self._others and rng.random() < mix.other_sizes:
            size = self._others[int(rng.integers(len(self._others)))]
        halve = size == COMMON and rng.random() < mix.halved
        weight = HALVED_WEIGHT if halve else COMMON[0] * COMMON[1] / (size[0] * size[1])
        count = max(4, round(self.batch * weight))
        rows, captions = [], []
        kinds = (1 - mix.pairs - mix.landscapes, mix.pairs, mix.landscapes)
        drawn = rng.choice(3, size=count, p=kinds)
        for kind in drawn:
            shard, row = pick(rng, self._kinds[size][kind])
            rows.append(self._arrays[size][shard][row])
            captions.append(training_caption(self._specs[size][shard][row], rng))
        latents = torch.from_numpy(np.stack(rows)).float()
        if halve:
            latents = F.avg_pool2d(latents, 2)
        return Batch(latents, captions, torch.from_numpy(drawn == 2), halve)
