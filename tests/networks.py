"""Files of weights as Real-ESRGAN's are: the published names, few channels, numbers from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch


def layers(channels: int, width: int, growth: int, blocks: int) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of each convolution, as in the published files."""
    yield "conv_first", channels, width
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(5):
                outputs = growth if number < 4 else width
                name = f"body.{block}.rdb{dense}.conv{number + 1}"
                yield name, width + number * growth, outputs
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        yield name, width, width
    yield "conv_last", width, 3


def write_network(file: Path, *, channels: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """A small one; `channels` of its first layer are 3 where it enlarges by 4, 12 by 2."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, inputs, outputs in layers(channels, width=8, growth=4, blocks=2):
        weights[f"{name}.weight"] = (
            torch.randn(outputs, inputs, 3, 3, generator=random) / (9 * inputs) ** 0.5
        )
        weights[f"{name}.bias"] = torch.rand(outputs, generator=random) * 0.2
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, file)
    return weights


def by_hand(weights: dict[str, torch.Tensor], picture: torch.Tensor, fold: int = 1) -> torch.Tensor:
    """What the network makes of a picture (1 x 3 x height x width), written from the papers."""

    def conv(name: str, values: torch.Tensor) -> torch.Tensor:
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return torch.conv2d(values, kernel, bias, padding=1)

    def bent(values: torch.Tensor) -> torch.Tensor:
        return torch.where(values > 0, values, 0.2 * values)

    first = conv("conv_first", torch.pixel_unshuffle(picture, fold))
    values = first
    for block in (0, 1):
        inside = values
        for dense in (1, 2, 3):
            seen = inside
            for number in (1, 2, 3, 4):
                new = bent(conv(f"body.{block}.rdb{dense}.conv{number}", seen))
                seen = torch.cat([seen, new], 1)
            inside = inside + 0.2 * conv(f"body.{block}.rdb{dense}.conv5", seen)
        values = values + 0.2 * inside
    values = first + conv("conv_body", values)
    for name in ("conv_up1", "conv_up2"):
        twice = values.repeat_interleave(2, 2).repeat_interleave(2, 3)
        values = bent(conv(name, twice))
    return conv("conv_last", bent(conv("conv_hr", values)))
