"""`sketch-flux`: two text encoders and a transformer, as a stock FluxPipeline has them."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from .batches import Batch
from .loss_weights import loss_weights
from .noise_levels import noise_ratios
from .text_encoders import build_clip, build_t5

SCALING_FACTOR = 0.23588615566727997
SHIFT_FACTOR = -0.223622128367424
"""The encoder's means become (means - shift) * scaling before the transformer sees them."""
SHIFT = 5.0
"""How far the scheduler moves its steps towards noise: half of them where shapes are decided."""
DEFAULT_TEXT_LENGTH = 32
"""The `max_sequence_length` to draw with: T5's tokens, padding included, are not masked."""


def build_transformer() -> FluxTransformer2DModel:
    """The transformer over 2x2 patches of latents: 256 tokens for 256x256 pixels."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    # Blocks that start as the identity, as in DiT: gates and the last projection at zero.
    for name, weight in transformer.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(weight)
    return transformer


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(n, 4, height, width) to FluxPipeline's tokens (n, height / 2 * width / 2, 16)."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def positions(height: int, width: int, halved: bool = False) -> torch.Tensor:
    """FluxPipeline's ids of the patches of latents of that height and width: (tokens, 3).

    A patch of halved latents stands for four whole ones and lies in their middle, so that what is
    learnt of places from halved latents is true of whole ones.
    """
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 1] += torch.arange(height // 2)[:, None]
    ids[..., 2] += torch.arange(width // 2)[None]
    if halved:
        ids[..., 1:] = 2 * ids[..., 1:] + 0.5
    return ids.view(-1, 3)


class FluxModel(nn.Module):
    """All trained parts of `sketch-flux`; the loss is what one training step needs."""

    def __init__(self, tokenizers: Path, init: Path | None = None) -> None:
        """`tokenizers` is the folder that `learn_tokenizers` wrote; `init` an assembled folder.

        With `init` the model is that folder's, words and shapes of layers included.
        """
        super().__init__()
        self.tokenizer = CLIPTokenizer.from_pretrained(
            init / "tokenizer" if init else tokenizers / "clip"
        )
        self.tokenizer_2 = T5Tokenizer.from_pretrained(
            init / "tokenizer_2" if init else tokenizers / "t5"
        )
        self.text_encoder: CLIPTextModel
        self.text_encoder_2: T5EncoderModel
        self.transformer: FluxTransformer2DModel
        if init:
            single = {"dtype": torch.float32}
            self.text_encoder = CLIPTextModel.from_pretrained(init / "text_encoder", **single)
            self.text_encoder_2 = T5EncoderModel.from_pretrained(init / "text_encoder_2", **single)
            self.transformer = FluxTransformer2DModel.from_pretrained(
                init / "transformer", **single
            )
        else:
            self.text_encoder = build_clip(self.tokenizer, width=128, layers=2)
            self.text_encoder_2 = build_t5(self.tokenizer_2, width=128, layers=2)
            self.transformer = build_transformer()

    def embed(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP's gist (captions, 128) and T5's words (captions, length, 128)."""
        device = self.transformer.device
        gist_ids = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        word_ids = self.tokenizer_2(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        gist = self.text_encoder(gist_ids.to(device)).pooler_output
        return gist, self.text_encoder_2(word_ids.to(device))[0]

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the flow, weighted by place.

        One batch in 32 reads its captions with more padding, so that it does not matter much how
        long a client makes it.
        """
        device = self.transformer.device
        length = DEFAULT_TEXT_LENGTH
        if torch.rand((), generator=generator) < 1 / 32:
            length = int((64, 128, 256, 512)[int(torch.randint(4, (), generator=generator))])
            # Attention's memory grows with the square of all tokens: fewer pictures then.
            batch = batch.first(max(2, len(batch.captions) * DEFAULT_TEXT_LENGTH // length))
        latents = (batch.latents.to(device) - SHIFT_FACTOR) * SCALING_FACTOR
        height, width = latents.shape[2:]
        weights = pack(loss_weights(latents, batch.landscape.to(device)).expand_as(latents))
        clean = pack(latents)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        ratios = noise_ratios(batch.landscape, height, width, generator)
        sigma = (ratios / (1 + ratios)).to(device)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        gist, words = self.embed(batch.captions, length)
        flow = self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=words,
            pooled_projections=gist,
            img_ids=positions(height, width, batch.halved).to(device),
            txt_ids=torch.zeros(length, 3, device=device),
            return_dict=False,
        )[0]
        return (weights * (flow.float() - (noise - clean)).square()).mean()
