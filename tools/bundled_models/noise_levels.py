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
"""The range that the broad part is spread over."""
BROAD_DRAWING, BROAD_LANDSCAPE = 0.2, 0.7
"""The broad part's share: a landscape is details at all scales, a drawing is its shape."""
PURE = 0.04
"""The share that gets nothing but noise, as the first step of drawing does."""


def noise_ratios(
    landscape: torch.Tensor, height: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Noise over picture, one for each of `landscape`, spread evenly over their distribution.

    What is not broad is log-normal about the centre. That grows with the latents' side: the more of
    them show a thing, the more noise still lets it be seen.
    """
    count = len(landscape)
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    share = share[torch.randperm(count, generator=generator)]
    broad = torch.where(landscape, BROAD_LANDSCAPE, BROAD_DRAWING)
    centre = math.log(CENTRE * math.sqrt(height * width) / 32)
    quantile = (share - broad) / (1 - broad - PURE)
    bell = torch.special.ndtri(quantile.clamp(1e-3, 1 - 1e-3)) * WIDTH + centre
    low, high = (math.log(limit) for limit in BROAD)
    spread = low + (high - low) * share / broad
    ratios = torch.where(share < broad, spread, bell).exp()
    return torch.where(share > 1 - PURE, 1e6, ratios)
