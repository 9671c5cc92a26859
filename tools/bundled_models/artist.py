"""Pictures from an assembled folder, drawn as the gateway would by default."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from PIL import Image

from .flux_model import DEFAULT_TEXT_LENGTH


@dataclass(frozen=True)
class Settings:
    """What a picture is drawn with; sizes in pixels."""

    steps: int
    guidance: float = 1.0
    height: int = 256
    width: int = 256


DEFAULTS = {"sketch": Settings(steps=12, guidance=4.0), "sketch-flux": Settings(steps=8)}


def load(folder: Path) -> DiffusionPipeline:
    """The stock pipeline that a folder holds, in single precision."""
    if (folder / "transformer").exists():
        pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: DiffusionPipeline,
    words: list[str],
    seeds: list[int],
    settings: Settings,
    negative: str = "",
) -> list[Image.Image]:
    """One picture for each prompt and seed, all in one batch.

    `guidance` is Flux's `true_cfg_scale`; without it, above 1, a negative prompt says nothing.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    call = {
        "prompt": words,
        "num_inference_steps": settings.steps,
        "height": settings.height,
        "width": settings.width,
        "generator": generators,
    }
    if isinstance(pipeline, FluxPipeline):
        call["max_sequence_length"] = DEFAULT_TEXT_LENGTH
        if settings.guidance > 1:
            call |= {
                "true_cfg_scale": settings.guidance,
                "negative_prompt": [negative] * len(words),
            }
    else:
        call["guidance_scale"] = settings.guidance
        call["negative_prompt"] = [negative] * len(words)
    return pipeline(**call).images


def default_settings(pipeline: DiffusionPipeline) -> Settings:
    """What the gateway uses when a request says nothing."""
    return DEFAULTS["sketch-flux" if isinstance(pipeline, FluxPipeline) else "sketch"]
