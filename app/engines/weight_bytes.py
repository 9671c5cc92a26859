"""How many bytes a model's weights will take, told by its files or its card. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from app.domain.model_card import ModelCard
from app.domain.model_source import is_single_file
from app.model_files.headers import elements, header
from app.model_files.places import weightless
from app.model_files.selection import INDEX, parts_of, shard_index_of, shards_of, weights_of

Precision = Literal["float32", "bfloat16", "float16"]

_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_INTEGERS = {"64": 8, "32": 4, "16": 2}
"""Bytes by what their names end in; they keep their type. All others are one byte wide."""

_TRAINING_ONLY = ("model_ema.", "optimizer")
"""Beginnings of what checkpoints hold for training alone."""


def precision_for(card: ModelCard, device: str) -> Precision:
    """float32 on a CPU, where half precision is 50 times slower; bfloat16 on a GPU."""
    if card.dtype != "auto":
        return card.dtype
    return "float32" if device == "cpu" else "bfloat16"


def weight_bytes(card: ModelCard, device: str) -> int:
    """Bytes of the weights on `device`, before they are loaded; 0 when nothing tells.

    Counts what loading takes: of each part that the folder's index names, the weights (half precision
    only where there is no other), every tensor once, in the precision that it will be computed in;
    and of a single file all that is used, with GGUF as it lies there. Reads a few kilobytes.
    Without files, it is by what the card says in `parameters`.
    """
    floats = _BYTES[precision_for(card, device)]
    try:
        if card.family == "control":
            return sum(_file_bytes(path, floats) for path in _weight_files(Path(card.source)))
        if not is_single_file(card.source):
            return _folder_bytes(Path(card.source), floats)
        file, base = Path(card.source), Path(card.base)
        without = weightless(parts_of((base / INDEX).read_bytes()))
        return _file_bytes(file, floats) + _folder_bytes(base, floats, without)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # What is wrong with the files is told when they are loaded.
        return sum(card.parameters.values()) * floats


def weight_counts(card: ModelCard) -> Mapping[str, int]:
    """How many numbers each part is made of: by its folder, and without files by its card. Empty where
    neither tells, and of a GGUF file, whose numbers are of many sizes."""
    if is_single_file(card.file or card.source):
        return {} if (card.file or card.source).lower().endswith(".gguf") else card.parameters
    try:
        return {
            name: sum(elements(tensor) for tensor in tensors)
            for name, tensors in _tensors(Path(card.source)).items()
            if tensors
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return card.parameters


def _folder_bytes(folder: Path, floats: int, without: Collection[str] = ()) -> int:
    return sum(
        _tensor_bytes(tensor, floats)
        for name, tensors in _tensors(folder).items()
        if name not in without
        for tensor in tensors
    )


def _tensors(folder: Path) -> dict[str, list[dict[str, object]]]:
    """What the files say of each part's tensors."""
    parts = json.loads((folder / INDEX).read_bytes())
    named = [name for name, what in parts.items() if isinstance(what, list) and any(what)]
    return {
        name: [
            tensor
            for path in _weight_files(folder / Path(name).name)
            for tensor in header(path).values()
        ]
        for name in named
    }


def _file_bytes(file: Path, floats: int) -> int:
    if file.suffix.lower() == ".gguf":
        return file.stat().st_size
    return sum(
        _tensor_bytes(tensor, floats)
        for name, tensor in header(file).items()
        if not name.startswith(_TRAINING_ONLY)
    )


def _weight_files(part: Path) -> list[Path]:
    """The files that diffusers and transformers load of a part; none of a tokenizer."""
    if not part.is_dir():
        return []
    names = {path.name for path in part.iterdir()}
    index = shard_index_of(names)
    found = sorted(shards_of((part / index).read_bytes())) if index else weights_of(names)
    return [part / name for name in found]


def _tensor_bytes(tensor: dict[str, object], floats: int) -> int:
    kind = str(tensor["dtype"])
    is_float = kind.startswith(("F", "BF"))
    return elements(tensor) * (floats if is_float else _INTEGERS.get(kind[1:], 1))
