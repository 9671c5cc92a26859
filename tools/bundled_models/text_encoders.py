"""The text encoders, small ones of the stock kinds, ready to be trained from nothing."""

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


def build_clip(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """CLIP's text encoder; tokens start far apart, since the usual 0.02 is slow for few layers."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, weight in encoder.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            nn.init.normal_(weight, std=0.5 if "token" in name else 0.15)
    return encoder


def build_t5(tokenizer: T5Tokenizer, width: int, layers: int) -> T5EncoderModel:
    """T5's encoder, its embeddings of about unit size as its norms expect."""
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=32,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=width // 32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        nn.init.normal_(encoder.shared.weight, std=0.7)
    return encoder
