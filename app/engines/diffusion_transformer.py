"""Stable Diffusion 3, Z-Image, Qwen-Image, Sana and PixArt: transformers of many makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)
from torch import Tensor

from app.domain.request import GenerationRequest
from app.engines.recipe import Recipe, basics, size, strength, unscaled


def _guided(request: GenerationRequest) -> dict[str, Any]:
    return {
        **basics(request),
        **size(request),
        "negative_prompt": request.negative_prompt,
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
        **strength(request),
    }


def _as_it_was_said(request: GenerationRequest) -> dict[str, Any]:
    """`clean_caption` would rewrite prompts where two more packages happen to be installed."""
    return {**_guided(request), "clean_caption": False}


def _qwen_edit(request: GenerationRequest) -> dict[str, Any]:
    """Guidance is by a second forward, which wants a negative prompt, though it may be empty."""
    given = {**basics(request), **size(request), "true_cfg_scale": request.true_cfg_scale}
    if request.true_cfg_scale > 1.0:
        given["negative_prompt"] = request.negative_prompt
    return given


def _qwen(request: GenerationRequest) -> dict[str, Any]:
    length = {"max_sequence_length": request.max_sequence_length}
    return {**_qwen_edit(request), **length, **strength(request)}


def _one_frame(pipeline: Any, latents: Tensor, request: GenerationRequest) -> Tensor:
    """1 x patches x 64, for a VAE of videos that has a mean and a deviation for each channel."""
    frames: Tensor = pipeline._unpack_latents(  # noqa: SLF001
        latents, request.height, request.width, pipeline.vae_scale_factor
    )
    config = pipeline.vae.config
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1).to(frames)
    deviation = torch.tensor(config.latents_std).view(1, -1, 1, 1).to(frames)
    return frames[:, :, 0] * deviation + mean


RECIPES: Mapping[str, Recipe] = {
    "StableDiffusion3Pipeline": Recipe(
        {
            "text2image": StableDiffusion3Pipeline,
            "image2image": StableDiffusion3Img2ImgPipeline,
            "inpaint": StableDiffusion3InpaintPipeline,
        },
        _guided,
        unscaled,
        tokenizer="tokenizer_3",
    ),
    "ZImagePipeline": Recipe(
        {
            "text2image": ZImagePipeline,
            "image2image": ZImageImg2ImgPipeline,
            "inpaint": ZImageInpaintPipeline,
        },
        _guided,
        unscaled,
        layers=(-2,),
    ),
    "QwenImagePipeline": Recipe(
        {
            "text2image": QwenImagePipeline,
            "image2image": QwenImageImg2ImgPipeline,
            "inpaint": QwenImageInpaintPipeline,
        },
        _qwen,
        _one_frame,
        layers=(-1,),
    ),
    "QwenImageEditPipeline": Recipe({"image2image": QwenImageEditPipeline}, _qwen_edit, _one_frame),
    "QwenImageEditPlusPipeline": Recipe(
        {"image2image": QwenImageEditPlusPipeline}, _qwen_edit, _one_frame
    ),
    "SanaPipeline": Recipe({"text2image": SanaPipeline}, _as_it_was_said, unscaled),
    "PixArtAlphaPipeline": Recipe(
        {"text2image": PixArtAlphaPipeline}, _as_it_was_said, unscaled, has_step_end=False
    ),
    "PixArtSigmaPipeline": Recipe(
        {"text2image": PixArtSigmaPipeline}, _as_it_was_said, unscaled, has_step_end=False
    ),
}
