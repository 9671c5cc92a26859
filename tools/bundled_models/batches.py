"""Batches for the trainings: latents from the shards' memory maps, captions made on the spot."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .captions import training_caption
from .dataset import from_json, shard_paths
from .grammar import Specification, pick

COMMON = (32, 32)
"""The latent size of a 256x256 picture, which most batches have."""

KINDS = (0.68, 0.20, 0.12)
"""Shares of single objects, pairs and landscapes, whatever the shards hold: shapes are learnt last,
and mostly from single objects."""
HALVED_WEIGHT = 3
"""How many halved latents stand for one whole."""


class LatentBatches:
    """Draws batches of one latent size each from all shards of a folder.

    The same rng over the same shards draws the same batches. `halved` is the share of batches of
    common size whose latents are averaged 2x2: a quarter of the work teaches what is where.
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

    @property
    def common_counts(self) -> tuple[int, int]:
        """How many latents a batch of the common size holds, whole and halved."""
        return self.batch, HALVED_WEIGHT * self.batch

    def __len__(self) -> int:
        """The number of pictures of all sizes."""
        return sum(len(shard) for shards in self._arrays.values() for shard in shards)

    def draw(
        self, rng: np.random.Generator, halved: float, other: float
    ) -> tuple[torch.Tensor, list[str]]:
        """Latents (n, 4, height, width), not scaled, and their captions.

        A batch is of another size than 32x32 with probability `other`, and halved with `halved`.
        """
        size = COMMON
        if self._others and rng.random() < other:
            size = self._others[int(rng.integers(len(self._others)))]
        halve = size == COMMON and rng.random() < halved
        weight = HALVED_WEIGHT if halve else COMMON[0] * COMMON[1] / (size[0] * size[1])
        count = max(4, round(self.batch * weight))
        latents, captions = [], []
        for _ in range(count):
            kinds = self._kinds[size]
            shard, row = pick(rng, kinds[int(rng.choice(len(kinds), p=KINDS))])
            latents.append(self._arrays[size][shard][row])
            captions.append(training_caption(self._specs[size][shard][row], rng))
        stacked = torch.from_numpy(np.stack(latents)).float()
        return (F.avg_pool2d(stacked, 2) if halve else stacked), captions
