"""Flux.1 (schnell, dev, Kontext, Fill) and Flux.2 (klein, dev): transformers over packed patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from torch import Tensor

from app.domain.request import GenerationRequest
from app.engines.recipe import Recipe, basics, size, strength, unscaled


def _flux(request: GenerationRequest) -> dict[str, Any]:
    return {
        **basics(request),
        **size(request),
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
    }


def _fill(request: GenerationRequest) -> dict[str, Any]:
    return {**_flux(request), **strength(request)}


def _two_forwards(request: GenerationRequest) -> dict[str, Any]:
    """A negative prompt acts only through `true_cfg_scale` above 1, which costs a second forward."""
    if request.true_cfg_scale <= 1.0:
        return {}
    return {
        "true_cfg_scale": request.true_cfg_scale,
        "negative_prompt": request.negative_prompt,
    }


def _flux_1(request: GenerationRequest) -> dict[str, Any]:
    return {**_flux(request), **strength(request), **_two_forwards(request)}


def _kontext(request: GenerationRequest) -> dict[str, Any]:
    """Every size is brought to `max_area`, which therefore is the one that was asked for."""
    area = request.width * request.height
    return {**_flux(request), **_two_forwards(request), "max_area": area}


def _patches(pipeline: Any, latents: Tensor, request: GenerationRequest) -> Tensor:
    """1 x patches x 64 for Flux.1."""
    unpacked = pipeline._unpack_latents(  # noqa: SLF001
        latents, request.height, request.width, pipeline.vae_scale_factor
    )
    return unscaled(pipeline, unpacked, request)


def _normalised_patches(pipeline: Any, latents: Tensor, request: GenerationRequest) -> Tensor:
    """1 x patches x 128, each channel of which Flux.2 has normalised."""
    side = pipeline.vae_scale_factor * 2
    grid = (request.height // side, request.width // side)
    patches = latents.permute(0, 2, 1).reshape(1, -1, *grid)
    norm, epsilon = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    deviation = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + epsilon).to(patches)
    whole = patches * deviation + norm.running_mean.view(1, -1, 1, 1).to(patches)
    return pipeline._unpatchify_latents(whole)  # type: ignore[no-any-return]  # noqa: SLF001


RECIPES: Mapping[str, Recipe] = {
    # Of their two tokenizers that of T5 counts, which carries the words.
    "FluxPipeline": Recipe(
        {
            "text2image": FluxPipeline,
            "image2image": FluxImg2ImgPipeline,
            "inpaint": FluxInpaintPipeline,
        },
        _flux_1,
        _patches,
        tokenizer="tokenizer_2",
    ),
    "FluxKontextPipeline": Recipe(
        {"text2image": FluxKontextPipeline, "image2image": FluxKontextPipeline},
        _kontext,
        _patches,
        tokenizer="tokenizer_2",
    ),
    "FluxFillPipeline": Recipe(
        {"inpaint": FluxFillPipeline}, _fill, _patches, tokenizer="tokenizer_2"
    ),
    "Flux2KleinPipeline": Recipe(
        {"text2image": Flux2KleinPipeline, "image2image": Flux2KleinPipeline},
        _flux,
        _normalised_patches,
        layers=(9, 18, 27),
    ),
    "Flux2Pipeline": Recipe(
        {"text2image": Flux2Pipeline, "image2image": Flux2Pipeline},
        _flux,
        _normalised_patches,
        layers=(10, 20, 30),
    ),
}
