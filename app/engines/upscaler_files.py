"""The upscalers that there are: Lanczos, and each file of weights in a folder. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from app.domain.model_card import Defaults, ModelCard
from app.domain.upscaling import LANCZOS, Upscaler

_SCALES = {3: (2, 4), 12: (2,)}
"""Channels of the first layer, and the factors that such a network is good for: one of 4 is made
smaller for 2."""

_NEEDED = ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight", "conv_last.weight")
_MAX_HEADER = 10_000_000


def find_upscalers(folder: Path) -> dict[str, Upscaler]:
    """All by their ids, which are the names of their files.

    Raises ValueError: a file holds no weights of a Real-ESRGAN, or has a name that no model may have.
    """
    found = {LANCZOS: Upscaler(_card(LANCZOS, folder), (2, 4))}
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem in found:
            raise ValueError(f"{file.name}: there is an upscaler of that name")
        found[file.stem] = Upscaler(_card(file.stem, folder), _scales(file))
    return found


def _card(name: str, folder: Path) -> ModelCard:
    return ModelCard(
        id=name,
        family="upscaler",
        source=str(folder.resolve()),
        tasks=("upscale",),
        defaults=Defaults(sampler="none"),
    )


def _scales(file: Path) -> tuple[int, ...]:
    try:
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            tensors = json.loads(opened.read(min(length, _MAX_HEADER)))
        if not all(name in tensors for name in _NEEDED):
            raise KeyError("a layer is missing")
        return _SCALES[tensors["conv_first.weight"]["shape"][1]]
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        raise ValueError(f"{file.name} holds no weights of a Real-ESRGAN network") from error
