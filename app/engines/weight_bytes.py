"""How many bytes a model's weights will take, told by its files or its card. Needs no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from app.domain.model_card import ModelCard

Precision = Literal["float32", "bfloat16", "float16"]

_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_INTEGERS = {"64": 8, "32": 4, "16": 2}
"""Bytes by what their names end in; they keep their type. All others are one byte wide."""

_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def precision_for(card: ModelCard, device: str) -> Precision:
    """float32 on a CPU, where half precision is 50 times slower; bfloat16 on a GPU."""
    if card.dtype != "auto":
        return card.dtype
    return "float32" if device == "cpu" else "bfloat16"


def weight_bytes(card: ModelCard, device: str) -> int:
    """Bytes of the weights on `device`, before they are loaded; 0 when nothing tells.

    Counts what loading takes: of each part that the folder's index names, the weights without a
    variant, every tensor once, in the precision that it will be computed in. Reads a few kilobytes.
    Without files, it is by what the card says in `parameters`.
    """
    floats = _BYTES[precision_for(card, device)]
    folder = Path(card.source)
    try:
        parts = json.loads((folder / "model_index.json").read_bytes())
        named = [name for name, what in parts.items() if isinstance(what, list) and any(what)]
        return sum(
            _tensor_bytes(tensor, floats)
            for name in named
            for path in _weight_files(folder / Path(name).name)
            for tensor in _header(path)
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error):
        # What is wrong with the folder is told when it is loaded.
        return sum(card.parameters.values()) * floats


def _weight_files(part: Path) -> list[Path]:
    """The files that diffusers and transformers load of a part; none of a tokenizer."""
    for stem in ("diffusion_pytorch_model", "model"):
        whole = part / f"{stem}.safetensors"
        index = part / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
            return [part / Path(shard).name for shard in sorted(shards)]
    return []


def _header(path: Path) -> Iterator[dict[str, object]]:
    """What a safetensors file says of its tensors: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > _MAX_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
    return (tensor for name, tensor in header.items() if name != "__metadata__")


def _tensor_bytes(tensor: dict[str, object], floats: int) -> int:
    kind, shape = str(tensor["dtype"]), tensor["shape"]
    if not isinstance(shape, list):
        raise TypeError("no shape")
    is_float = kind.startswith(("F", "BF"))
    return math.prod(shape) * (floats if is_float else _INTEGERS.get(kind[1:], 1))
