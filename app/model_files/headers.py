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


def whole_header(path: Path, limit: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The tensors, and what the file says of itself beside, if all of that is at most `limit` bytes.

    Raises OSError, ValueError.
    """
    tensors, _, told = _read(path, limit)
    return tensors, {name: text for name, text in told.items() if isinstance(text, str)}


def check(path: Path) -> None:
    """Raise ValueError if the file is not as long as its header says, or has none; and OSError."""
    tensors, start, _ = _read(path)
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


def _read(
    path: Path, limit: int = _MAX_HEADER
) -> tuple[dict[str, dict[str, Any]], int, dict[str, Any]]:
    with path.open("rb") as file:
        lead = file.read(8)
        if len(lead) < 8:
            raise ValueError("no safetensors file")
        length = struct.unpack("<Q", lead)[0]
        if length > limit:
            raise ValueError("no safetensors file")
        try:
            found = json.loads(file.read(length))
        except RecursionError as error:
            raise ValueError("no safetensors file") from error
    if not isinstance(found, dict):
        raise ValueError("no safetensors file")  # noqa: TRY004 - the file is wrong, not the caller
    tensors = {name: one for name, one in found.items() if name != "__metadata__"}
    if not all(isinstance(one, dict) for one in tensors.values()):
        raise ValueError("no safetensors file")
    told = found.get("__metadata__")
    return tensors, 8 + length, told if isinstance(told, dict) else {}
