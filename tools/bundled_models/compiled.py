"""Compilation for the batches that come often, and none for the rare sizes."""

from collections.abc import Collection

import torch
from torch import nn


def compile_common(denoiser: nn.Module, counts: Collection[int]) -> None:
    """Compile the module for batches of these counts, one shape each.

    Every shape takes a minute or more to compile on a CPU, and rare sizes would each want it too;
    they never share a count with the common ones.
    """
    plain = denoiser.forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(*inputs: object, **named: object) -> object:
        tensors = [value for value in (*inputs, *named.values()) if torch.is_tensor(value)]
        common = tensors[0].shape[0] in counts
        return (compiled if common else plain)(*inputs, **named)

    denoiser.forward = forward  # type: ignore[method-assign]
