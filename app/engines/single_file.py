"""Pipelines whose weights come in one file: a checkpoint, or a transformer alone, as GGUF too.

All that is not in the file comes from the card's `base`, a diffusers folder: the configuration of every
part, the tokenizers, and with a transformer alone the weights of the other parts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, GGUFQuantizationConfig

from app.domain.errors import ModelUnavailable
from app.domain.model_card import ModelCard
from app.model_files.folder import wrong_file

TRANSFORMER = "transformer"
"""The part that may come alone."""


def load_single_file(
    card: ModelCard,
    kind: type[DiffusionPipeline],
    dtype: torch.dtype,
    parts: Mapping[str, Any],
    rest: Callable[[], Mapping[str, Any]],
) -> Any:
    """The pipeline of the card's file. `parts` is the index of its base; `rest` gives what
    `from_pretrained` needs for the other parts.

    Raises ModelUnavailable, and whatever loaders raise: also where a tensor is missing, because what
    was not in the file has no memory and cannot be brought to a device.
    """
    file = Path(card.source)
    if wrong := wrong_file(file):
        raise ModelUnavailable(f"Model {card.id} cannot be loaded: {wrong}.")
    quantised = file.suffix.lower() == ".gguf"
    whole: Any = kind  # the library is not typed
    if TRANSFORMER in parts:
        transformer = _transformer(card, parts[TRANSFORMER], dtype, quantised=quantised)
        return whole.from_pretrained(
            card.base,
            transformer=transformer,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **rest(),
        )
    if quantised:
        raise ModelUnavailable(f"Model {card.id} cannot be loaded: only transformers come as GGUF.")
    return whole.from_single_file(card.source, config=card.base, dtype=dtype, local_files_only=True)


def _transformer(card: ModelCard, named: Any, dtype: torch.dtype, *, quantised: bool) -> Any:
    kind: Any = getattr(diffusers, named[1], None) if named[0] == "diffusers" else None
    if not (isinstance(kind, type) and hasattr(kind, "from_single_file")):
        raise ModelUnavailable(f"The transformer of model {card.id} cannot come from one file.")
    how = {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)} if quantised else {}
    return kind.from_single_file(
        card.source,
        config=card.base,
        subfolder=TRANSFORMER,
        dtype=dtype,
        local_files_only=True,
        **how,
    )
