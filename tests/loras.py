"""Makes LoRAs for real models, as files that diffusers and kohya's scripts would save."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

DENOISER_ENDS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ENDS = ("q_proj", "v_proj")


def tensors(pipeline: Any, *, seed: int = 5, rank: int = 2, text: bool = True) -> dict[str, Tensor]:
    """A LoRA on the attention of the denoiser, and of those text encoders that can have one."""
    chance = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for part in pipeline._lora_loadable_modules:
        is_text = part.startswith("text_encoder")
        module = getattr(pipeline, part, None)
        if module is None or (is_text and not text):
            continue
        for name, one in module.named_modules():
            if isinstance(one, nn.Linear) and name.endswith(
                TEXT_ENDS if is_text else DENOISER_ENDS
            ):
                down = torch.randn(rank, one.in_features, generator=chance)
                up = torch.randn(one.out_features, rank, generator=chance)
                found[f"{part}.{name}.lora_A.weight"] = down * 0.3
                found[f"{part}.{name}.lora_B.weight"] = up * 0.3
    return found


def write(file: Path, found: Mapping[str, Tensor], **told: str) -> Path:
    """A file with these tensors, which says `told` of itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(found), file, metadata={"format": "pt", **told})
    return file


def like_kohya(found: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The same with kohya's names, each with an alpha; the denoiser's only."""
    named: dict[str, Tensor] = {}
    for name, tensor in found.items():
        part, _, rest = name.partition(".")
        if part != "unet":
            continue
        module, end, _ = rest.rsplit(".", 2)
        bare = f"lora_unet_{module.replace('.', '_')}"
        named[f"{bare}.{'lora_down' if end == 'lora_A' else 'lora_up'}.weight"] = tensor
        named[f"{bare}.alpha"] = torch.tensor(alpha)
    return named


def settings(**given: Any) -> dict[str, str]:
    """What diffusers tells of peft's settings in a file."""
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in given.items()})}


def put(pipeline: Any, files: Sequence[Path], scales: Sequence[float]) -> None:
    """The LoRAs into a stock pipeline, by diffusers' own hands."""
    names = [f"adapter{number}" for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, list(scales))
