"""Several processes that train one model: each on its own, averaging their weights now and then.

On CPUs two processes of one thread each get more done than one of two threads, and weights that are
averaged every few steps learn nearly as well as gradients averaged at every one (local SGD).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Peers:
    """This process's place among `count`; the weights are averaged every `every` steps."""

    rank: int = 0
    count: int = 1
    every: int = 8

    def meet(self, folder: Path) -> None:
        """Wait until all are there; a file in the folder is where they meet."""
        if self.count > 1:
            meeting = f"file://{(folder / 'meeting').resolve()}"
            dist.init_process_group("gloo", meeting, rank=self.rank, world_size=self.count)

    @torch.no_grad()
    def average(self, step: int, weights: Sequence[torch.Tensor]) -> None:
        """Make the weights of all peers their mean, if it is time."""
        if self.count == 1 or step % self.every:
            return
        together = torch.cat([weight.flatten() for weight in weights])
        dist.all_reduce(together)
        together /= self.count
        start = 0
        for weight in weights:
            weight.copy_(together[start : start + weight.numel()].view_as(weight))
            start += weight.numel()
