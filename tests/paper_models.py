"""Models that weigh something and hold nothing: a card of the fake family whose files tell a size."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from app.domain.model_card import Defaults, FakeTimes, ModelCard


def paper_model(
    folder: Path, name: str, megabytes: int = 0, *, load: float = 0.0, step: float = 0.01
) -> ModelCard:
    """A card for a model of that many million bytes, of which none is on the disk."""
    source = folder / name
    safetensors(
        source / "unet" / "diffusion_pytorch_model.safetensors",
        {"weight": ("F32", [megabytes * 250_000])},
    )
    index = {"_class_name": "Paper", "unet": ["paper", "Sheet"]}
    (source / "model_index.json").write_text(json.dumps(index))
    return ModelCard(
        id=name,
        family="fake",
        source=str(source),
        dtype="float32",
        defaults=Defaults(width=64, height=64, num_inference_steps=4, sampler="euler"),
        fake=FakeTimes(load_seconds=load, step_seconds=step),
    )


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """The header of a safetensors file, and no data behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]}
        for name, (kind, shape) in tensors.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
