"""Whether all that a pipeline needs lies on the disk, as far as names, lengths and indexes tell."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from app.model_files import headers
from app.model_files.selection import INDEX, is_shard_index, parts_of, shards_of, weights_of


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


def _wrong_weights(part: Path, files: Collection[str]) -> str:
    weights = weights_of(files)
    if not weights:
        return "has no weights as safetensors"
    if any("-of-" in name for name in weights):
        indexes = [name for name in files if is_shard_index(name)]
        if not indexes:
            return "has shards without an index"
        try:
            if not shards_of((part / indexes[0]).read_bytes()) <= set(weights):
                return "lacks some of its shards"
        except (OSError, ValueError):
            return "has an index of shards that cannot be used"
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
