"""Stock diffusers pipelines with tiny random weights: every shape of call, and nothing to download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

_PLAIN: dict[str, Any] = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.06,
}
CONTROL_OF_XL: dict[str, Any] = {
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_weights(module: Any, seed: int = 0) -> Any:
    """Weights far from zero everywhere, also where a fresh model starts with zeros."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            spread = 0.3 if weight.ndim < 2 else 1.0 / weight[0].numel() ** 0.5
            noise = torch.randn(weight.shape, generator=chance) * spread
            weight.copy_(noise + 1.0 if weight.ndim < 2 and weight.mean() > 0.5 else noise)
    return module.eval()


def unet(**given: Any) -> Any:
    config = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return random_weights(UNet2DConditionModel(**{**config, **given}))


_FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}


def flux_transformer(**given: Any) -> Any:
    return random_weights(FluxTransformer2DModel(**{**_FLUX, **given}))


def sd3_transformer(**given: Any) -> Any:
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
        "qk_norm": "rms_norm",
    }
    return random_weights(SD3Transformer2DModel(**{**config, **given}))


def autoencoder(blocks: int = 2, channels: int = 4, **given: Any) -> Any:
    """A VAE whose latents are 2 ** (blocks - 1) times smaller than its pictures."""
    return random_weights(
        AutoencoderKL(
            block_out_channels=(8,) * (blocks - 1) + (16,),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=channels,
            **given,
        )
    )


def controlnet(**given: Any) -> Any:
    config = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "conditioning_embedding_out_channels": (8, 16),
    }
    return random_weights(ControlNetModel(**{**config, **given}))


def flux_controlnet(**given: Any) -> Any:
    return random_weights(FluxControlNetModel(**{**_FLUX, **given}))


def sd3_controlnet() -> Any:
    return random_weights(
        SD3ControlNetModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
        )
    )


def clip(kind: type[Any], seed: int = 0) -> Any:
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return random_weights(kind(config), seed)


def t5(width: int) -> Any:
    config = T5Config(
        vocab_size=len(LETTERS) + 4,
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return random_weights(T5EncoderModel(config))


def clip_tokenizer() -> Any:
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocabulary, [], model_max_length=16)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5TokenizerFast([(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=16)


@cache
def _stable_diffusion_parts() -> Mapping[str, Any]:
    return {
        "unet": unet(),
        "vae": autoencoder(),
        "text_encoder": clip(CLIPTextModel),
        "tokenizer": clip_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@cache
def _xl_parts() -> Mapping[str, Any]:
    return {
        "unet": unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        "vae": autoencoder(),
        "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 1),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "scheduler": EulerDiscreteScheduler(),
    }


@cache
def _sd3_parts() -> Mapping[str, Any]:
    return {
        "transformer": sd3_transformer(in_channels=16, out_channels=16),
        "vae": autoencoder(channels=16, **_PLAIN),
        "text_encoder": clip(CLIPTextModelWithProjection),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 1),
        "text_encoder_3": t5(64),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@cache
def _flux_parts() -> Mapping[str, Any]:
    return {
        "transformer": flux_transformer(),
        "vae": autoencoder(**_PLAIN),
        "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": t5(32),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@cache
def _kontext_parts() -> Mapping[str, Any]:
    """Kontext sees every picture at a megapixel: its VAE makes that small enough."""
    return {**_flux_parts(), "vae": autoencoder(4, **_PLAIN)}


@cache
def _fill_parts() -> Mapping[str, Any]:
    """Fill's transformer sees the latents, those of what the mask leaves, and the mask."""
    return {**_flux_parts(), "transformer": flux_transformer(in_channels=48, out_channels=16)}


@cache
def _inpaint_parts() -> Mapping[str, Any]:
    return {**_stable_diffusion_parts(), "unet": unet(in_channels=9)}


@cache
def _control_parts() -> Mapping[str, Any]:
    return {**_stable_diffusion_parts(), "controlnet": controlnet()}


@cache
def _xl_control_parts() -> Mapping[str, Any]:
    return {**_xl_parts(), "controlnet": controlnet(**CONTROL_OF_XL)}


@cache
def _flux_control_parts() -> Mapping[str, Any]:
    return {**_flux_parts(), "controlnet": flux_controlnet()}


PARTS: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "StableDiffusionPipeline": _stable_diffusion_parts,
    "StableDiffusionImg2ImgPipeline": _stable_diffusion_parts,
    "StableDiffusionInpaintPipeline": _stable_diffusion_parts,
    "StableDiffusionControlNetPipeline": _control_parts,
    "StableDiffusionXLControlNetPipeline": _xl_control_parts,
    "FluxControlNetPipeline": _flux_control_parts,
    "StableDiffusionXLPipeline": _xl_parts,
    "StableDiffusionXLImg2ImgPipeline": _xl_parts,
    "StableDiffusion3Pipeline": _sd3_parts,
    "StableDiffusionInpaintPipeline of nine channels": _inpaint_parts,
    "FluxPipeline": _flux_parts,
    "FluxImg2ImgPipeline": _flux_parts,
    "FluxKontextPipeline": _kontext_parts,
    "FluxFillPipeline": _fill_parts,
}


@cache
def pipeline(kind: str) -> Any:
    """The stock pipeline of that name, built once; pipelines of one family share their parts."""
    built = getattr(diffusers, kind)(**PARTS[kind]())
    built.set_progress_bar_config(disable=True)
    return built


def forget() -> None:
    """Build all anew: what other tests left in shared parts, such as adapters, would be saved too."""
    pipeline.cache_clear()
    for parts in PARTS.values():
        cached: Any = parts
        cached.cache_clear()


def aligned(built: Any) -> Any:
    """The pipeline with its weights in memory of their own. Kernels round by where weights begin, too,
    and in a file that is wherever it is."""
    for part in built.components.values():
        if isinstance(part, torch.nn.Module) and not getattr(part, "is_quantized", False):
            for weight in part.parameters():
                weight.data = weight.data.clone()
    return built


def denoiser(built: Any) -> Any:
    return getattr(built, "unet", None) or built.transformer


def lora(built: Any, rank: int = 2) -> dict[str, Tensor]:
    """A LoRA on all attention projections of the denoiser, as a state dict."""
    prefix = "unet" if hasattr(built, "unet") else "transformer"
    chance = torch.Generator().manual_seed(5)
    found: dict[str, Tensor] = {}
    for name, module in denoiser(built).named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = torch.randn(rank, module.in_features, generator=chance)
            up = torch.randn(module.out_features, rank, generator=chance)
            found[f"{prefix}.{name}.lora_A.weight"] = down * 0.3
            found[f"{prefix}.{name}.lora_B.weight"] = up * 0.3
    return found
