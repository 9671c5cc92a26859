"""From a model card to a diffusers pipeline, taking nothing that could run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from app.domain.errors import ModelUnavailable, OutOfMemory
from app.domain.model_card import ModelCard

# Progress bars are for notebooks.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_pipeline(card: ModelCard, kind: type[DiffusionPipeline], device: str) -> Any:
    """The pipeline of class `kind` in the card's folder, on `device`, ready to draw.

    Raises:
        ModelUnavailable: the folder is missing, incomplete, damaged, of another class, or holds
            anything but safetensors.
        OutOfMemory: the device has no room for the weights.
    """
    folder = Path(card.source)
    _check_folder(card, folder, kind)
    try:
        pipeline: Any = kind.from_pretrained(
            folder, dtype=dtype_for(card, device), use_safetensors=True, local_files_only=True
        )
        pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"The device has no room for the weights of model {card.id}.") from error
    except Exception as error:
        # Loaders raise whatever their file formats raise (SafetensorError, OSError, KeyError …).
        raise ModelUnavailable(f"The weights of model {card.id} cannot be loaded.") from error
    return pipeline


def dtype_for(card: ModelCard, device: str) -> torch.dtype:
    """float32 on a CPU, where half precision is 50 times slower; bfloat16 on a GPU."""
    if card.dtype != "auto":
        return _DTYPES[card.dtype]
    return torch.float32 if device == "cpu" else torch.bfloat16


def _check_folder(card: ModelCard, folder: Path, kind: type[DiffusionPipeline]) -> None:
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"The folder of model {card.id} has no usable index.") from error
    if name != kind.__name__:
        raise ModelUnavailable(f"Model {card.id} is not a {kind.__name__} but another kind.")
    for path in folder.rglob("*"):
        if path.suffix in (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            raise ModelUnavailable(
                f"Model {card.id} holds files that could run code; only safetensors are loaded."
            )
