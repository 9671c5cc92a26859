"""The parts of well-known models: their classes, and what their published config.json say.

Only what differs from the defaults of the class, and decides how many weights there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """`kind` is a class of diffusers, or of transformers with its configuration class in `of`."""

    kind: str
    config: Config = field(default_factory=dict)
    of: str = ""


# -- autoencoders ----------------------------------------------------------------------------------

VAE: Config = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
VAE_16: Config = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_VAE = Part("AutoencoderKL", VAE)
_VAE_16 = Part("AutoencoderKL", VAE_16)
_VAE_FLUX_2 = Part("AutoencoderKLFlux2")
_VAE_FILMS = Part("AutoencoderKLQwenImage")
_VAE_DEEP = Part(
    "AutoencoderDC",
    {
        "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
    },
)

# -- text encoders ---------------------------------------------------------------------------------

_CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_CLIP = Part("CLIPTextModel", _CLIP_L, of="CLIPTextConfig")
_CLIP_PROJECTED = Part("CLIPTextModelWithProjection", _CLIP_L, of="CLIPTextConfig")
_CLIP_H = Part(
    "CLIPTextModel",
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "vocab_size": 49408,
    },
    of="CLIPTextConfig",
)
_CLIP_G = Part(
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
    of="CLIPTextConfig",
)
_T5_XXL = Part(
    "T5EncoderModel",
    {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    },
    of="T5Config",
)
_QWEN_3_4B: Config = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_QWEN_3_8B: Config = {
    **_QWEN_3_4B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
_QWEN_2_5_VL = Part(
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
        "tie_word_embeddings": False,
    },
    of="Qwen2_5_VLConfig",
)
_MISTRAL_SMALL = Part(
    "Mistral3ForConditionalGeneration",
    {
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 131072,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 1540,
            "patch_size": 14,
        },
        "multimodal_projector_bias": False,
        "tie_word_embeddings": False,
    },
    of="Mistral3Config",
)
_GEMMA_2B = Part(
    "Gemma2Model",
    {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    },
    of="Gemma2Config",
)

# -- denoisers -------------------------------------------------------------------------------------

UNET_15: Config = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
UNET_21: Config = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
UNET_XL: Config = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX_SCHNELL: Config = {"in_channels": 64, "guidance_embeds": False}  # else the class's own
FLUX_DEV: Config = {"in_channels": 64, "guidance_embeds": True}
FLUX_FILL: Config = {"in_channels": 384, "out_channels": 64, "guidance_embeds": True}
FLUX_2_KLEIN: Config = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
FLUX_2_KLEIN_9B: Config = {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}
SD_35_MEDIUM: Config = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD_35_LARGE: Config = {
    "sample_size": 128,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
Z_IMAGE: Config = {"axes_lens": [1536, 512, 512]}  # the rest is the class's own: 30 blocks of 3840
SANA_15: Config = {"qk_norm": "rms_norm_across_heads"}
PIXART_SIGMA: Config = {
    "sample_size": 128,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}


# -- models, by the ids of their cards -------------------------------------------------------------


def _sd_3(transformer: Config) -> dict[str, Part]:
    return {
        "transformer": Part("SD3Transformer2DModel", transformer),
        "text_encoder": _CLIP_PROJECTED,
        "text_encoder_2": _CLIP_G,
        "text_encoder_3": _T5_XXL,
        "vae": _VAE_16,
    }


def _flux(transformer: Config) -> dict[str, Part]:
    return {
        "transformer": Part("FluxTransformer2DModel", transformer),
        "text_encoder": _CLIP,
        "text_encoder_2": _T5_XXL,
        "vae": _VAE_16,
    }


_XL = {
    "unet": Part("UNet2DConditionModel", UNET_XL),
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP_G,
    "vae": _VAE,
}
_QWEN = {
    "transformer": Part("QwenImageTransformer2DModel"),
    "text_encoder": _QWEN_2_5_VL,
    "vae": _VAE_FILMS,
}

MODELS: Mapping[str, Mapping[str, Part]] = {
    "sd15": {"unet": Part("UNet2DConditionModel", UNET_15), "text_encoder": _CLIP, "vae": _VAE},
    "sd21": {"unet": Part("UNet2DConditionModel", UNET_21), "text_encoder": _CLIP_H, "vae": _VAE},
    "sdxl": _XL,
    "sdxl-turbo": _XL,
    "sdxl-lightning": _XL,
    "sd35-medium": _sd_3(SD_35_MEDIUM),
    "sd35-large": _sd_3(SD_35_LARGE),
    "sd35-large-turbo": _sd_3(SD_35_LARGE),
    "flux-schnell": _flux(FLUX_SCHNELL),
    "flux-dev": _flux(FLUX_DEV),
    "flux-kontext": _flux(FLUX_DEV),
    "flux-fill": _flux(FLUX_FILL),
    "flux2-klein": {
        "transformer": Part("Flux2Transformer2DModel", FLUX_2_KLEIN),
        "text_encoder": Part("Qwen3ForCausalLM", _QWEN_3_4B, of="Qwen3Config"),
        "vae": _VAE_FLUX_2,
    },
    "flux2-klein-9b": {
        "transformer": Part("Flux2Transformer2DModel", FLUX_2_KLEIN_9B),
        "text_encoder": Part("Qwen3ForCausalLM", _QWEN_3_8B, of="Qwen3Config"),
        "vae": _VAE_FLUX_2,
    },
    "flux2-dev": {
        "transformer": Part("Flux2Transformer2DModel"),
        "text_encoder": _MISTRAL_SMALL,
        "vae": _VAE_FLUX_2,
    },
    "z-image-turbo": {
        "transformer": Part("ZImageTransformer2DModel", Z_IMAGE),
        "text_encoder": Part("Qwen3Model", _QWEN_3_4B, of="Qwen3Config"),
        "vae": _VAE_16,
    },
    "qwen-image": _QWEN,
    "qwen-image-edit": _QWEN,
    "qwen-image-edit-2511": _QWEN,
    "sana": {
        "transformer": Part("SanaTransformer2DModel", SANA_15),
        "text_encoder": _GEMMA_2B,
        "vae": _VAE_DEEP,
    },
    "pixart-sigma": {
        "transformer": Part("PixArtTransformer2DModel", PIXART_SIGMA),
        "text_encoder": _T5_XXL,
        "vae": _VAE,
    },
}
