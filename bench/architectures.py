"""Real architectures by hand, so that nothing is downloaded: the sizes of their published config.json.

Weights are random, drawn on the device (not zeros, with which some GPUs run faster). There are no text
encoders: prompts are random embeddings of the real shape, so text encoding is in no figure. `small` are
overrides under which the same classes run in a moment on a CPU, to try the benchmark itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from bench.published import FLUX_SCHNELL, UNET_15, UNET_XL, VAE, VAE_16, Z_IMAGE, Config

_SMALL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
}
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

Embeddings = Callable[[Mapping[str, Any], Callable[..., torch.Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """`embeddings` gives the prompt's arguments, from the denoiser's config and a source of noise."""

    name: str
    pipeline: str
    denoiser: str
    config: Config
    small: Config
    vae: Config
    embeddings: Embeddings
    steps: int
    guidance: float
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    noise: dict[str, Any] = field(default_factory=dict)
    part: str = "transformer"


def _clip(config: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    width = config["cross_attention_dim"]
    return {"prompt_embeds": noise(1, 77, width), "negative_prompt_embeds": noise(1, 77, width)}


def _two_clips(config: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    sizes = 6 * config["addition_time_embed_dim"]
    width = config["projection_class_embeddings_input_dim"] - sizes
    pooled = {
        name: noise(1, width) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    }
    return {**_clip(config, noise), **pooled}


def _t5(config: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 256, config["joint_attention_dim"]),
        "pooled_prompt_embeds": noise(1, config["pooled_projection_dim"]),
    }


def _qwen(config: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {"prompt_embeds": [noise(64, config["cap_feat_dim"])]}


ARCHITECTURES = (
    Architecture(
        "SD 1.5",
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        UNET_15,
        {
            "cross_attention_dim": 32,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        {**VAE, "scaling_factor": 0.18215},
        _clip,
        steps=20,
        guidance=7.5,
        scheduler="EulerDiscreteScheduler",
        noise={**_NOISE, "steps_offset": 1},
        part="unet",
    ),
    Architecture(
        "SDXL",
        "StableDiffusionXLPipeline",
        "UNet2DConditionModel",
        UNET_XL,
        {
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 4),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        {**VAE, "scaling_factor": 0.13025, "force_upcast": True},
        _two_clips,
        steps=20,
        guidance=5.0,
        scheduler="EulerDiscreteScheduler",
        noise={**_NOISE, "steps_offset": 1},
        part="unet",
    ),
    Architecture(
        "FLUX.1-schnell",
        "FluxPipeline",
        "FluxTransformer2DModel",
        FLUX_SCHNELL,
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        VAE_16,
        _t5,
        steps=4,
        guidance=0.0,
        noise={"shift": 1.0},
    ),
    Architecture(
        "Z-Image-Turbo",
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        Z_IMAGE,
        {
            "in_channels": 4,
            "dim": 64,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 12, 12],
        },
        VAE_16,
        _qwen,
        steps=9,
        guidance=0.0,
        noise={"shift": 3.0},
    ),
)


def build(arch: Architecture, device: str, dtype: torch.dtype, *, small: bool) -> Any:
    """The stock pipeline with random weights on `device`, without text encoders."""
    config = {**arch.config, **(arch.small if small else {})}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            denoiser = getattr(diffusers, arch.denoiser)(**config)
            vae = diffusers.AutoencoderKL(**{**arch.vae, **(_SMALL_VAE if small else {})})
    finally:
        torch.set_default_dtype(before)
    for part in (denoiser, vae):
        part.eval().requires_grad_(requires_grad=False)
        for weight in part.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.02)
    kind = getattr(diffusers, arch.pipeline)
    scheduler = getattr(diffusers, arch.scheduler)(**arch.noise)
    wanted = {
        name
        for name, one in inspect.signature(kind.__init__).parameters.items()
        if one.default is inspect.Parameter.empty
    }
    absent = dict.fromkeys(wanted - {"self", "vae", arch.part, "scheduler"})
    more = {"requires_safety_checker": False} if arch.name == "SD 1.5" else {}
    pipeline = kind(vae=vae, scheduler=scheduler, **{arch.part: denoiser}, **absent, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
