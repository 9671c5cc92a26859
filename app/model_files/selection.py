"""Which files a pipeline needs of all that a repository holds. Pure.

Wanted are the parts that `model_index.json` names: their configurations, their tokenizers, and their
weights as safetensors; those without a variant, and `fp16` only where a part has no others. Never
wanted: pickles, Python, ONNX, and the copies that repositories keep for other programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

INDEX = "model_index.json"
CONFIG = "config.json"
FP16 = "fp16"

_TEXTS = (".json", ".txt", ".model")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?\.safetensors"
)
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_SHARD_INDEX = re.compile(
    r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json"
)

DENOISERS = ("unet", "transformer")
"""Parts that a single file stands for."""


def parts_of(index: bytes) -> dict[str, tuple[str, str]]:
    """The parts that an index names, each with its library and class. Raises ValueError."""
    try:
        named = json.loads(index)
    except (ValueError, RecursionError) as error:
        raise ValueError("the index is no JSON") from error
    if not isinstance(named, dict) or not isinstance(named.get("_class_name"), str):
        raise ValueError("the index names no pipeline")  # noqa: TRY004 - the same
    parts: dict[str, tuple[str, str]] = {}
    for name, what in named.items():
        if not isinstance(what, list) or not any(what):
            continue
        if len(what) != 2 or not all(isinstance(word, str) for word in what):
            raise ValueError("the index names a part of no kind")
        if name in (".", "..") or PurePosixPath(name).name != name:
            raise ValueError("the index names a part outside of its folder")
        parts[name] = (what[0], what[1])
    if not parts:
        raise ValueError("the index names no part")
    return parts


def wanted(
    names: Iterable[str], parts: Collection[str], without_weights: Collection[str] = ()
) -> list[str]:
    """Those of the files `names` that a pipeline of these parts needs, in order of their names.

    Of the parts `without_weights` only the texts: what they weigh comes from elsewhere.
    """
    chosen = []
    by_part: dict[str, list[str]] = {part: [] for part in parts}
    for name in names:
        path = PurePosixPath(name)
        if name == INDEX:
            chosen.append(name)
        elif len(path.parts) == 2 and path.parts[0] in by_part:
            by_part[path.parts[0]].append(path.name)
    for part, files in by_part.items():
        kept = of_part(files)
        if part in without_weights:
            kept = [name for name in kept if not name.endswith(".safetensors")]
        chosen += [f"{part}/{name}" for name in kept]
    return sorted(chosen)


def of_part(files: Collection[str]) -> list[str]:
    """Those of the files in a part's folder that are needed."""
    variant = variant_of(files)
    texts = [
        name
        for name in files
        if name.endswith(_TEXTS) and not (_SHARD_INDEX.fullmatch(name) or ".index." in name)
    ]
    indexes = [name for name in files if _variant(_SHARD_INDEX, name) == variant]
    return [*texts, *indexes, *weights_of(files)]


def weights_of(files: Collection[str]) -> list[str]:
    """The files with the weights of a part: one whole file if there is one, else all shards."""
    variant = variant_of(files)
    found = sorted(name for name in files if _variant(_WEIGHTS, name) == variant)
    whole = [name for name in found if "-of-" not in name]
    return whole[:1] or found


def variant_of(files: Collection[str]) -> str:
    """ "fp16" where a part's weights come in no other precision, else ""."""
    variants = {_variant(_WEIGHTS, name) for name in files}
    variants |= {_variant(_SHARD_INDEX, name) for name in files}
    return FP16 if FP16 in variants and "" not in variants else ""


def shards_of(index: bytes) -> set[str]:
    """The files that a shard index names. Raises ValueError."""
    try:
        named: Mapping[str, Any] = json.loads(index)["weight_map"]
        shards = set(named.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the index of the shards cannot be used") from error
    if not shards or not all(
        isinstance(shard, str) and _SHARD.fullmatch(shard) for shard in shards
    ):
        raise ValueError("the index names shards that are none")
    return shards


def shard_index_of(files: Collection[str]) -> str:
    """The index of the shards that a part's weights come in; "" if they come in one file."""
    if any("-of-" not in name for name in weights_of(files)):
        return ""
    variant = variant_of(files)
    return next((name for name in files if _variant(_SHARD_INDEX, name) == variant), "")


def _variant(pattern: re.Pattern[str], name: str) -> str | None:
    match = pattern.fullmatch(name)
    return None if match is None else match["variant"] or ""
