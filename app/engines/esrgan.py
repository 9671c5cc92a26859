"""The network of ESRGAN and Real-ESRGAN: residual blocks in residual blocks, then nearest twice.

Written out here, because the library that reads such files needs a build of torchvision which does
not load beside every build of torch. Names of layers are those of the published weights, so a file
fits or does not; see "ESRGAN" (arXiv 1809.00219) and "Real-ESRGAN" (arXiv 2107.10833).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.domain.errors import ModelUnavailable, OutOfMemory

_RESIDUAL = 0.2
_SLOPE = 0.2
"""Of the leaky ReLUs; both are the papers' own."""

_OWN_SCALE = 4


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _bent(values: Tensor) -> Tensor:
    return functional.leaky_relu(values, _SLOPE)


class _Dense(nn.Module):
    """Five convolutions, each of all that came before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(5):
            outputs = growth if number < 4 else width
            self.add_module(f"conv{number + 1}", _conv(width + number * growth, outputs))

    def forward(self, values: Tensor) -> Tensor:
        seen = [values]
        for number in range(1, 5):
            seen.append(_bent(self.get_submodule(f"conv{number}")(torch.cat(seen, 1))))
        last: Tensor = self.get_submodule("conv5")(torch.cat(seen, 1))
        return last * _RESIDUAL + values


class _Residual(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(width, growth) for _ in range(3))

    def forward(self, values: Tensor) -> Tensor:
        through: Tensor = self.rdb3(self.rdb2(self.rdb1(values)))
        return through * _RESIDUAL + values


class RrdbNet(nn.Module):
    """Pictures (batch x 3 x height x width, 0 to 1) to such as are `scale` times as large.

    Where `scale` is below 4, the picture is folded into more channels first, which is what Real-ESRGAN
    calls pixel unshuffle.
    """

    def __init__(self, scale: int, width: int, growth: int, blocks: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = _conv(3 * (_OWN_SCALE // scale) ** 2, width)
        self.body = nn.Sequential(*(_Residual(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            _conv(width, width) for _ in range(4)
        )
        self.conv_last = _conv(width, 3)

    def forward(self, picture: Tensor) -> Tensor:
        fold = _OWN_SCALE // self.scale
        height, width = picture.shape[-2:]
        padding = (0, -width % fold, 0, -height % fold)
        whole = functional.pad(picture, padding, mode="reflect") if any(padding) else picture
        first: Tensor = self.conv_first(functional.pixel_unshuffle(whole, fold))
        values = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            values = _bent(conv(functional.interpolate(values, scale_factor=2, mode="nearest")))
        values = self.conv_last(_bent(self.conv_hr(values)))
        large: Tensor = values[..., : height * self.scale, : width * self.scale]
        return large


def load(name: str, file: Path, device: str) -> RrdbNet:
    """The network whose weights lie in the file, ready to enlarge.

    Raises:
        ModelUnavailable: the file is missing, damaged, or of another network.
        OutOfMemory: the device has no room for it.
    """
    try:
        weights = safetensors.torch.load_file(file)
        network = _shaped(weights)
        network.load_state_dict({key: one.float() for key, one in weights.items()})
        network.eval().requires_grad_(False)
        return network.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"The device has no room for the weights of model {name}.") from error
    except Exception as error:  # whatever the file format raises
        raise ModelUnavailable(f"The weights of model {name} cannot be loaded.") from error


def _shaped(weights: Mapping[str, Tensor]) -> RrdbNet:
    width, channels = weights["conv_first.weight"].shape[:2]
    growth = weights["body.0.rdb1.conv1.weight"].shape[0]
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("body."))
    return RrdbNet({3: 4, 12: 2}[channels], width, growth, blocks)
