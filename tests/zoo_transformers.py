"""The newer transformers of the zoo, with what belongs to them: language models, VAEs of films."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    ZImageTransformer2DModel,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.zoo import autoencoder, random_weights, t5, t5_tokenizer

WIDTH = 32
"""Of all language models here."""
WORDS = 200
"""Entries of their vocabularies: letters and what chat templates are made of."""

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)


def chat_tokenizer(**given: Any) -> Any:
    """A byte-level tokenizer of letters that knows how to frame a message."""
    pieces = [*_SPECIAL, *map(chr, range(33, 127)), "Ġ", "Ċ"]
    return Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        additional_special_tokens=list(_SPECIAL[1:]),
        chat_template=_CHAT,
        **given,
    )


def _language(**given: Any) -> dict[str, Any]:
    return {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **given,
    }


def flow(**given: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(**given)


@cache
def flux_2_parts() -> Mapping[str, Any]:
    """klein. Its pipeline looks at layers 9, 18 and 27 of the language model."""
    return {
        "transformer": _flux_2_transformer(),
        "vae": _flux_2_vae(),
        "text_encoder": random_weights(
            Qwen3ForCausalLM(Qwen3Config(**_language(num_hidden_layers=28)))
        ),
        "tokenizer": chat_tokenizer(),
        "scheduler": flow(use_dynamic_shifting=True),
        "is_distilled": True,
    }


@cache
def flux_2_dev_parts() -> Mapping[str, Any]:
    language = Mistral3Config(
        text_config={"model_type": "mistral", **_language(num_hidden_layers=31)},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=7,
    )
    return {
        "transformer": _flux_2_transformer(),
        "vae": _flux_2_vae(),
        "text_encoder": random_weights(Mistral3ForConditionalGeneration(language)),
        # In a real folder a processor of pictures too is around it, which needs torchvision.
        "tokenizer": chat_tokenizer(padding_side="left"),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def _flux_2_transformer() -> Any:
    return random_weights(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=True,
        )
    )


def _flux_2_vae() -> Any:
    vae = random_weights(
        AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


@cache
def z_image_parts() -> Mapping[str, Any]:
    return {
        "transformer": random_weights(
            ZImageTransformer2DModel(
                in_channels=4,
                dim=64,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=WIDTH,
                axes_dims=[8, 12, 12],
                axes_lens=[512, 64, 64],
            )
        ),
        "vae": autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        "text_encoder": random_weights(Qwen3Model(Qwen3Config(**_language()))),
        "tokenizer": chat_tokenizer(),
        "scheduler": flow(shift=3.0),
    }


@cache
def qwen_parts() -> Mapping[str, Any]:
    language = Qwen2_5_VLConfig(
        text_config=_language(
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        ),
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return {
        "transformer": random_weights(
            QwenImageTransformer2DModel(
                in_channels=64,
                out_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        "vae": random_weights(
            AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        ),
        "text_encoder": random_weights(Qwen2_5_VLForConditionalGeneration(language)),
        "tokenizer": chat_tokenizer(),
        "scheduler": flow(use_dynamic_shifting=True),
    }


@cache
def qwen_edit_parts() -> Mapping[str, Any]:
    processor = Qwen2VLProcessor(Qwen2VLImageProcessorPil(), chat_tokenizer(), chat_template=_CHAT)
    return {**qwen_parts(), "processor": processor}


@cache
def sana_parts() -> Mapping[str, Any]:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *map(chr, range(33, 127))]
    return {
        "transformer": random_weights(
            SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=WIDTH,
                sample_size=16,
            )
        ),
        "vae": random_weights(
            AutoencoderDC(
                latent_channels=4,
                attention_head_dim=8,
                encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8, 16),
                decoder_block_out_channels=(8, 8, 16),
                encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), (5,)),
                decoder_qkv_multiscales=((), (), (5,)),
                scaling_factor=0.41407,
            )
        ),
        "text_encoder": random_weights(Gemma2Model(Gemma2Config(**_language()))),
        "tokenizer": GemmaTokenizer({piece: index for index, piece in enumerate(pieces)}, []),
        "scheduler": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    }


@cache
def pixart_parts() -> Mapping[str, Any]:
    return {
        "transformer": random_weights(
            PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                cross_attention_dim=32,
                sample_size=32,
                caption_channels=WIDTH,
                use_additional_conditions=False,
            )
        ),
        "vae": autoencoder(),
        "text_encoder": t5(WIDTH),
        "tokenizer": t5_tokenizer(),
        "scheduler": DPMSolverMultistepScheduler(),
    }
