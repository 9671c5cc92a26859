"""What is particular to Stable Diffusion 1.x and 2.x: its pipelines and their arguments."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

from app.domain.request import GenerationRequest, Task

NAME = "stable_diffusion"

PIPELINES: dict[Task, type[DiffusionPipeline]] = {
    "text2image": StableDiffusionPipeline,
    "image2image": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}


def arguments(request: GenerationRequest) -> dict[str, Any]:
    """The request as keyword arguments of the pipeline, without pictures, generator and callback.

    An empty negative prompt is passed as none: the two encode the same.
    """
    given: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
    }
    if request.task != "text2image":
        given["strength"] = request.strength
    if request.task != "image2image":  # img2img takes its size from the picture
        given.update(width=request.width, height=request.height)
    return given


def tokenizer(pipeline: Any) -> Any:
    """The tokenizer whose tokens count as the prompt's: the only one."""
    return pipeline.tokenizer


def unpacked(pipeline: Any, latents: Any, request: GenerationRequest) -> Any:
    """The denoising loop's latents as 1 x channels x height x width: they are that already."""
    return latents
