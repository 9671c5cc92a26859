"""`sketch`: CLIP's text encoder and a UNet, as a stock StableDiffusionPipeline has them."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from .batches import Batch
from .loss_weights import loss_weights
from .noise_levels import noise_ratios
from .text_encoders import build_clip

SCALING_FACTOR = 0.23588615566727997
"""1 / standard deviation of the encoder's means, which the UNet sees."""


def build_unet() -> UNet2DConditionModel:
    """The UNet: attention at 16x16 and 8x8, without which it is slow to learn places.

    The words are also pooled into the time embedding, which every layer reads.
    """
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=128,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    nn.init.zeros_(unet.add_embedding.norm2.weight)
    return unet


def with_pooled_words(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet, its time embedding open to the words: at first it adds nothing."""
    if unet.config.addition_embed_type == "text":
        return unet
    wider = build_unet()
    wider.load_state_dict(unet.state_dict(), strict=False)
    return wider


class SketchModel(nn.Module):
    """Both trained parts of `sketch`; the loss is what one training step needs."""

    def __init__(self, tokenizers: Path, init: Path | None = None) -> None:
        """`tokenizers` is the folder that `learn_tokenizers` wrote; `init` an assembled folder.

        With `init` the model is that folder's, words and shapes of layers included.
        """
        super().__init__()
        self.tokenizer = CLIPTokenizer.from_pretrained(
            init / "tokenizer" if init else tokenizers / "clip"
        )
        self.text_encoder: CLIPTextModel
        self.unet: UNet2DConditionModel
        if init:
            single = {"dtype": torch.float32}
            self.text_encoder = CLIPTextModel.from_pretrained(init / "text_encoder", **single)
            unet = UNet2DConditionModel.from_pretrained(init / "unet", **single)
            self.unet = with_pooled_words(unet)
        else:
            self.text_encoder = build_clip(self.tokenizer, width=128, layers=2)
            self.unet = build_unet()
        self.scheduler = DDIMScheduler(
            beta_schedule="linear",
            beta_start=0.0001,
            beta_end=0.02,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            steps_offset=1,
            clip_sample=False,
        )

    def embed(self, captions: list[str]) -> torch.Tensor:
        """What the UNet reads of the words: (captions, 32, 128)."""
        ids = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.unet.device)).last_hidden_state

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of v, weighted by place."""
        device = self.unet.device
        latents = batch.latents.to(device) * SCALING_FACTOR
        noise = torch.randn(latents.shape, generator=generator).to(device)
        ratios = noise_ratios(batch.landscape, *latents.shape[2:], generator)
        # The scheduler's noise grows with its timesteps, so its own ratios are in order.
        signal = self.scheduler.alphas_cumprod
        timesteps = torch.searchsorted(((1 - signal) / signal).sqrt(), ratios)
        timesteps = timesteps.clamp(0, len(signal) - 1).to(device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        channels_last = noisy.contiguous(memory_format=torch.channels_last)
        predicted = self.unet(channels_last, timesteps, self.embed(batch.captions)).sample
        weights = loss_weights(latents, batch.landscape.to(device))
        return (weights * (predicted.float() - target).square()).mean()
