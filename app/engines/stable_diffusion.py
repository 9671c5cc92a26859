"""Stable Diffusion 1.x, 2.x and XL: pipelines around a UNet.

Turbo and Lightning models are these with few steps and, by their cards, another noise schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from app.domain.request import GenerationRequest
from app.engines.recipe import Recipe, basics, size, strength, unscaled


def arguments(request: GenerationRequest) -> dict[str, Any]:
    """An empty negative prompt is passed as none: the two encode the same, except in XL, whose folders
    may ask for zeros in its place."""
    return {
        **basics(request),
        "negative_prompt": request.negative_prompt or None,
        "guidance_scale": request.guidance_scale,
        **strength(request),
        # img2img takes its size from the picture
        **(size(request) if request.task != "image2image" else {}),
    }


RECIPES: Mapping[str, Recipe] = {
    "StableDiffusionPipeline": Recipe(
        {
            "text2image": StableDiffusionPipeline,
            "image2image": StableDiffusionImg2ImgPipeline,
            "inpaint": StableDiffusionInpaintPipeline,
        },
        arguments,
        unscaled,
    ),
    "StableDiffusionXLPipeline": Recipe(
        {
            "text2image": StableDiffusionXLPipeline,
            "image2image": StableDiffusionXLImg2ImgPipeline,
            "inpaint": StableDiffusionXLInpaintPipeline,
        },
        arguments,
        unscaled,
    ),
    # Their UNets see the mask and what it leaves, in five more channels.
    "StableDiffusionInpaintPipeline": Recipe(
        {"inpaint": StableDiffusionInpaintPipeline}, arguments, unscaled
    ),
    "StableDiffusionXLInpaintPipeline": Recipe(
        {"inpaint": StableDiffusionXLInpaintPipeline}, arguments, unscaled
    ),
}
