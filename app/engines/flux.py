"""What is particular to Flux.1: its pipelines and their arguments."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
)

from app.domain.request import GenerationRequest, Task

NAME = "flux"

PIPELINES: dict[Task, type[DiffusionPipeline]] = {
    "text2image": FluxPipeline,
    "image2image": FluxImg2ImgPipeline,
    "inpaint": FluxInpaintPipeline,
}


def arguments(request: GenerationRequest) -> dict[str, Any]:
    """The request as keyword arguments of the pipeline, without pictures, generator and callback.

    Sizes are always passed, since Flux pipelines fall back to 1024 x 1024 whatever the folder says.
    A negative prompt acts only through `true_cfg_scale` above 1, which costs a second forward.
    """
    given: dict[str, Any] = {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "width": request.width,
        "height": request.height,
        "max_sequence_length": request.max_sequence_length,
    }
    if request.task != "text2image":
        given["strength"] = request.strength
    if request.true_cfg_scale > 1.0:
        given["true_cfg_scale"] = request.true_cfg_scale
        given["negative_prompt"] = request.negative_prompt
    return given


def tokenizer(pipeline: Any) -> Any:
    """The tokenizer whose tokens count as the prompt's: that of T5, which carries the words."""
    return pipeline.tokenizer_2


def unpacked(pipeline: Any, latents: Any, request: GenerationRequest) -> Any:
    """The denoising loop's latents (1 x patches x 64 for Flux.1) as 1 x channels x height x width."""
    return pipeline._unpack_latents(  # noqa: SLF001
        latents, request.height, request.width, pipeline.vae_scale_factor
    )
