"""What files with weights say of themselves in their first kilobytes. Needs no torch."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Every tensor that a safetensors file names: eight bytes of length, then JSON.

    Raises OSError, and ValueError for what is no such file.
    """
    return _read(path)[0]


def check(path: Path) -> None:
    """Raise ValueError if the file is not as long as its header says, or has none; and OSError."""
    tensors, start = _read(path)
    end = 0
    for tensor in tensors.values():
        try:
            first, last = tensor["data_offsets"]
            end = max(end, int(last))
            if not 0 <= int(first) <= int(last):
                raise ValueError("offsets of a tensor are out of order")
        except (KeyError, TypeError) as error:
            raise ValueError("a tensor without offsets") from error
    if path.stat().st_size != start + end:
        raise ValueError("the file is not as long as its header says")


def elements(tensor: dict[str, Any]) -> int:
    """How many numbers the tensor holds. Raises ValueError."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        raise ValueError("a tensor without a shape")
    return math.prod(shape)


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    with path.open("rb") as file:
        lead = file.read(8)
        if len(lead) < 8:
            raise ValueError("no safetensors file")
        length = struct.unpack("<Q", lead)[0]
        if length > _MAX_HEADER:
            raise ValueError("no safetensors file")
        found = json.loads(file.read(length))
    if not isinstance(found, dict):
        raise ValueError("no safetensors file")  # noqa: TRY004 - the file is wrong, not the caller
    tensors = {name: one for name, one in found.items() if name != "__metadata__"}
    if not all(isinstance(one, dict) for one in tensors.values()):
        raise ValueError("no safetensors file")
    return tensors, 8 + length
