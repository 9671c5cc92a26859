"""Put a trained model together as a stock diffusers folder, in half precision.

Half precision is for the disk alone: on CPUs it is slow to compute with, so pass a dtype on loading.
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
)
from torch import nn

from . import flux_model, sketch_model

LIMIT = 15 * 1024 * 1024
"""Bytes that one folder may hold."""


def load_averages(model: nn.Module, checkpoint: Path) -> int:
    """Put a checkpoint's averaged weights into the model; returns the steps trained."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(state["averages"], strict=False)
    missing = {name for name, _ in model.named_parameters()} - state["averages"].keys()
    if missing:
        raise ValueError(f"the checkpoint lacks {sorted(missing)}")
    return int(state["step"])


def sketch_pipeline(model: sketch_model.SketchModel, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The stock pipeline around a trained `sketch`."""
    vae.register_to_config(scaling_factor=sketch_model.SCALING_FACTOR, shift_factor=None)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux_pipeline(model: flux_model.FluxModel, vae: AutoencoderKL) -> FluxPipeline:
    """The stock pipeline around a trained `sketch-flux`."""
    vae.register_to_config(
        scaling_factor=flux_model.SCALING_FACTOR, shift_factor=flux_model.SHIFT_FACTOR
    )
    return FluxPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=flux_model.SHIFT),
    )


def build_pipeline(
    name: str, checkpoint: Path, vae_folder: Path, tokenizers: Path, init: Path | None = None
) -> tuple[DiffusionPipeline, int]:
    """`sketch` or `sketch-flux` in single precision, and the steps it was trained for."""
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32)
    if name == "sketch":
        sketch = sketch_model.SketchModel(tokenizers, init)
        steps = load_averages(sketch, checkpoint)
        return sketch_pipeline(sketch.eval(), vae), steps
    flux = flux_model.FluxModel(tokenizers, init)
    steps = load_averages(flux, checkpoint)
    return flux_pipeline(flux.eval(), vae), steps


def folder_bytes(folder: Path) -> int:
    """All files of a folder together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Write one folder, whole or not at all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=("sketch", "sketch-flux"))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="the folder that the training began with")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pipeline, steps = build_pipeline(
        arguments.model,
        arguments.checkpoint,
        arguments.vae,
        arguments.tokenizers,
        arguments.init,
    )
    for part in pipeline.components.values():
        if isinstance(part, ConfigMixin) and "_name_or_path" in part.config:
            # Where it was loaded from means nothing elsewhere.
            part.register_to_config(_name_or_path="")
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(partial)
    size = folder_bytes(partial)
    if size > LIMIT:
        raise SystemExit(f"{size} bytes are more than {LIMIT}")
    shutil.rmtree(arguments.out, ignore_errors=True)
    partial.rename(arguments.out)
    print(f"{arguments.out}: {steps} steps, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
