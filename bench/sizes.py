"""How many weights the parts of well-known models have: `python -m bench.sizes` prints them for cards.

The classes are built on torch's meta device, where weights have shapes and take no memory.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from bench.published import MODELS, Part

_counted: dict[str, int] = {}


def parameters(model: str) -> dict[str, int]:
    """Weights of each part; a weight that two layers share counts once."""
    return {name: _count(part) for name, part in MODELS[model].items()}


def _count(part: Part) -> int:
    known = repr(part)
    if known not in _counted:
        _counted[known] = sum(weight.numel() for weight in _built(part).parameters())
    return _counted[known]


def _built(part: Part) -> Any:
    with torch.device("meta"):
        if not part.of:
            return getattr(diffusers, part.kind)(**part.config)
        config = getattr(transformers, part.of)(**part.config)
        return getattr(transformers, part.kind)(config)


if __name__ == "__main__":
    for name in MODELS:
        found = parameters(name)
        print(f"# {name}: {sum(found.values()) / 1e9:.2f} billion\n[parameters]")
        for part_name, count in found.items():
            print(f"{part_name} = {count:_}")
        print()
