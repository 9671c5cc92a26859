"""Small honest pictures of an unfinished image: what the model now believes the end will be.

The latents of a running denoising loop are noise for most of the time. What is shown instead is the
predicted final latent x0, computed from what the denoiser just returned, and made visible by a
linear map from latent channels to RGB. The map costs a quarter of a millisecond where a decoder
costs as much as several steps.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKLQwenImage
from torch import Tensor
from torch.nn import functional

from app.engines.image_codec import Pixels

_FIT_SIDE = 256
"""Pixels of the test picture that the map is fitted on."""


class PredictedEnd:
    """Watches a scheduler's `step` and can say which final latent it leads to."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._last: tuple[Tensor, Any, Tensor] | None = None
        step = scheduler.step

        @functools.wraps(step)  # pipelines look at the signature to see what a scheduler takes
        def watched(
            model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **named: Any
        ) -> Any:
            self._last = model_output, timestep, sample
            return step(model_output, timestep, sample, *more, **named)

        scheduler.step = watched

    def latents(self) -> Tensor:
        """x0 as the last step saw it, in the shape of the loop's own latents.

        Three parametrisations cover the schedulers of diffusers: flow matching (x = (1 - s) x0 + s
        noise, output noise - x0), sigma space (x = x0 + s noise) and variance preserving (x =
        sqrt(a) x0 + sqrt(1 - a) noise); the latter two with epsilon, v or x0 as the output
        (arXiv:2206.00364, arXiv:2202.00512).
        """
        if self._last is None:
            raise RuntimeError("no step was taken")
        output, timestep, sample = self._last
        x, noise, signal = self._parts(timestep, sample)
        kind = getattr(self._scheduler.config, "prediction_type", "flow")
        if kind == "sample":
            return output
        if kind == "epsilon":
            return (x - noise * output) / signal
        if kind == "v_prediction":
            return signal * x - noise * output
        return sample - noise * output

    def _parts(self, timestep: Any, sample: Tensor) -> tuple[Tensor, float, float]:
        """The sample as x = signal x0 + noise e, and the two factors."""
        scheduler = self._scheduler
        name = type(scheduler).__name__
        flows = scheduler.config.get("use_flow_sigmas")  # the solvers of other families, for Sana
        if flows or name.startswith("Flow") or "Flux" in name:
            return sample, float(timestep) / scheduler.config.num_train_timesteps, 1.0
        if name.startswith(("Euler", "Heun", "LMS")):
            sigma = float(scheduler.sigmas[scheduler.step_index - 1])
            signal = 1 / (1 + sigma**2) ** 0.5
            return sample * signal, sigma * signal, signal
        index = min(max(round(float(timestep)), 0), len(scheduler.alphas_cumprod) - 1)
        alpha = float(scheduler.alphas_cumprod[index])
        return sample, (1 - alpha) ** 0.5, alpha**0.5


class LatentColours:
    """The linear map from the latents of one VAE to RGB, fitted on what its encoder makes of them."""

    def __init__(self, vae: Any) -> None:
        """Encode one picture of random patches and solve for the map in least squares."""
        chance = torch.Generator("cpu").manual_seed(0)
        patches = torch.rand((1, 3, 16, 16), generator=chance)
        picture = functional.interpolate(patches, size=_FIT_SIDE, mode="bilinear")
        weight = next(vae.parameters())
        if weight.dtype is torch.float16:  # in which some encoders overflow
            vae = copy.deepcopy(vae).float()
            weight = weight.float()
        with torch.inference_mode():
            encoded = _encoded(vae, (picture * 2 - 1).to(weight.device, weight.dtype))
        latents = encoded.float().cpu()
        colours = functional.interpolate(picture, size=latents.shape[-2:], mode="area")
        rows = latents[0].flatten(1).T
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        self._map = torch.linalg.lstsq(rows, colours[0].flatten(1).T).solution

    def paint(self, latents: Tensor, width: int, height: int) -> Pixels:
        """Channels x h x w latents, as the decoder takes them, as a picture in full size."""
        channels = latents.float().cpu()
        colours = torch.einsum("chw,cr->rhw", channels, self._map[:-1])
        colours += self._map[-1][:, None, None]
        large = functional.interpolate(colours[None], size=(height, width), mode="bilinear")[0]
        levels = (large.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: Pixels = levels.permute(1, 2, 0).contiguous().numpy()
        return pixels


def _encoded(vae: Any, picture: Tensor) -> Tensor:
    """1 x channels x h x w, without a draw of chance where the encoder has a distribution."""
    if isinstance(vae, AutoencoderKLQwenImage):  # a picture is a film of one frame
        film: Tensor = vae.encode(picture.unsqueeze(2)).latent_dist.mean
        return film[:, :, 0]
    encoded = vae.encode(picture)
    mean: Tensor = encoded.latent if isinstance(vae, AutoencoderDC) else encoded.latent_dist.mean
    return mean
