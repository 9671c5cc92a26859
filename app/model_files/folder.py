"""Whether all that a pipeline needs lies on the disk, as far as names, lengths and indexes tell."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from app.model_files import headers
from app.model_files.selection import (
    CONFIG,
    INDEX,
    parts_of,
    shard_index_of,
    shards_of,
    weights_of,
)


def missing(folder: Path, without_weights: Collection[str] = ()) -> str:
    """What is wrong with a diffusers folder, as the end of a sentence; "" if nothing is.

    Reads the indexes and the headers of the weights: some kilobytes a file.
    """
    if not folder.is_dir():
        return "its folder does not exist"
    try:
        parts = parts_of((folder / INDEX).read_bytes())
    except OSError:
        return "its folder has no model_index.json"
    except ValueError:
        return "its model_index.json cannot be used"
    for part in parts:
        try:
            files = {path.name for path in (folder / part).iterdir()}
        except OSError:
            files = set()
        if not files:
            return f"its part {part} is missing"
        weighs = "config.json" in files and part not in without_weights
        if weighs and (wrong := _wrong_weights(folder / part, files)):
            return f"its part {part} {wrong}"
    return ""


def missing_part(folder: Path) -> str:
    """The same of a folder that is one part alone, without an index."""
    if not folder.is_dir():
        return "its folder does not exist"
    files = {path.name for path in folder.iterdir()}
    if CONFIG not in files:
        return f"its folder has no {CONFIG}"
    wrong = _wrong_weights(folder, files)
    return f"its folder {wrong}" if wrong else ""


def _wrong_weights(part: Path, files: set[str]) -> str:
    weights = weights_of(files)
    if index := shard_index_of(files):
        try:
            weights = sorted(shards_of((part / index).read_bytes()))
        except (OSError, ValueError):
            return "has an index of shards that cannot be used"
        if not files.issuperset(weights):
            return "lacks some of its shards"
    elif not weights:
        return "has no weights as safetensors"
    elif "-of-" in weights[0]:
        return "has shards without an index"
    for name in weights:
        if wrong_file(part / name):
            return "has weights that are cut short or damaged"
    return ""


def wrong_file(path: Path) -> str:
    """What is wrong with one file of weights, as the end of a sentence; "" if nothing is."""
    try:
        if path.suffix.lower() == ".gguf":
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    return "its file is damaged"
        else:
            headers.check(path)
    except FileNotFoundError:
        return "its file does not exist"
    except (OSError, ValueError):
        return "its file is cut short or damaged"
    return ""
