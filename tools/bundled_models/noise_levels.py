"""How much noise a training batch gets: most of it where it is decided what shape a thing has."""

import math

import torch

CENTRE = 12.0
"""The noise's ratio to the picture where words decide on shapes, for latents of 32x32.

Two medium shapes of the same colours differ by about 20 to 40 there (the norm over all latents):
below a ratio of a third of that the noisy picture itself shows which it is, and its words teach
nothing.
"""
WIDTH = 1.2
"""Standard deviation of the ratio's logarithm about the centre."""
BROAD = (0.03, 150.0)
"""The range that three pictures in ten are spread over."""


def noise_ratios(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Noise over picture, (count,), spread evenly over the quantiles of their distribution.

    Seven in ten are log-normal about the centre. It grows with the latents' side: the more of them
    show a thing, the more noise still lets it be seen.
    """
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    share = share[torch.randperm(count, generator=generator)]
    centre = math.log(CENTRE * math.sqrt(height * width) / 32)
    bell = torch.special.ndtri(((share - 0.3) / 0.7).clamp(1e-3, 1 - 1e-3)) * WIDTH + centre
    low, high = (math.log(limit) for limit in BROAD)
    spread = low + (high - low) * share / 0.3
    return torch.where(share < 0.3, spread, bell).exp()
