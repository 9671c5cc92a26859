"""The autoencoder's decoder, trained further on a frozen encoder.

The encoder stays as it is, so the latents keep their meaning and a new decoder fits every denoiser
trained before. Crops are encoded as pictures of their own: every border the decoder learns from is
a true one, and no frame shows in what it draws.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from .drawing import paint
from .grammar import sample_training

LATENT_NOISE = 0.25
"""The decoder also sees latents with up to this much noise (their own spread is about 4.5), so
that it forgives what a denoiser leaves behind."""


def render_pool(count: int, seed: int, side: int = 256) -> NDArray[np.uint8]:
    """(count, side, side, 3) sRGB of what the trainings draw."""
    rng = np.random.default_rng([3, seed])
    return np.stack([paint(sample_training(rng), side, side, rng) for _ in range(count)])


def as_pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(n, height, width, 3) sRGB to the autoencoder's (n, 3, height, width) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def decoder_loss(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute and squared errors, and the error of neighbouring pixels' differences: edges."""
    error = drawn - wanted
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * (across + down)


@torch.inference_mode()
def peak_signal_to_noise(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> float:
    """Mean PSNR in dB of encoding and decoding (n, height, width, 3) sRGB, rounded to 8 bits."""
    values = []
    for picture in pictures:
        pixels = as_pixels(picture[None])
        drawn = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        levels = ((drawn + 1) * 127.5).round() - (pixels + 1) * 127.5
        values.append(10 * np.log10(255**2 / max(1e-9, float(levels.square().mean()))))
    return float(np.mean(values))


def draw_crops(
    pool: NDArray[np.uint8], count: int, side: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Random square crops (count, side, side, 3)."""
    crops = []
    for _ in range(count):
        picture = pool[int(rng.integers(len(pool)))]
        top, left = rng.integers(0, picture.shape[0] - side + 1, 2)
        crops.append(picture[top : top + side, left : left + side])
    return np.stack(crops)


def train_decoder(vae: AutoencoderKL, steps: int, rate: float, out: Path, seed: int = 0) -> None:
    """AdamW with a cosine rate; an average of the weights is saved every 200 steps."""
    pool, test = render_pool(1500, seed), render_pool(32, seed + 1)
    vae.requires_grad_(False)
    weights = list(vae.decoder.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    began = time.monotonic()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        side = 96 if step < steps // 2 else 160
        pixels = as_pixels(draw_crops(pool, 16 if side == 96 else 6, side, rng))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean
        strength = torch.from_numpy(rng.uniform(0, LATENT_NOISE, len(latents))).float()
        strength[: len(latents) // 2] = 0
        noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape), dtype=np.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn = vae.decode(latents + strength[:, None, None, None] * noise).sample
        decoder_loss(drawn.float(), pixels).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        turn = 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * max(0.02, turn) * min(1, (step + 1) / 50)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(0.995, (1 + step) / (10 + step)))
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_average(vae, weights, averages, test, out, step + 1, time.monotonic() - began)


def save_average(
    vae: AutoencoderKL,
    weights: list[torch.nn.Parameter],
    averages: list[torch.Tensor],
    test: NDArray[np.uint8],
    out: Path,
    step: int,
    seconds: float,
) -> None:
    """Swap the averages in, measure and save them, and swap the trained weights back."""
    trained = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(weights, averages)
        quality = peak_signal_to_noise(vae, test)
        partial = out.with_name(out.name + ".partial")
        vae.save_pretrained(partial)
        for path in partial.iterdir():
            out.mkdir(parents=True, exist_ok=True)
            path.replace(out / path.name)
        torch._foreach_copy_(weights, trained)
    with out.with_name(out.name + "-log.jsonl").open("a") as log:
        line = {"step": step, "psnr": round(quality, 2), "seconds": round(seconds)}
        log.write(json.dumps(line) + "\n")


def main() -> None:
    """Continue a decoder from the folder of an AutoencoderKL."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vae = AutoencoderKL.from_pretrained(arguments.init, dtype=torch.float32)
    vae.to(memory_format=torch.channels_last)
    train_decoder(vae, arguments.steps, arguments.rate, arguments.out)


if __name__ == "__main__":
    main()
