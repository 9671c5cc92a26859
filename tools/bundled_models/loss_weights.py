"""Where an error counts: on objects and about their edges more than on the empty ground."""

import torch
import torch.nn.functional as F

EXTRA = 4.0
"""How many more times an error counts on an object; the ground is most of a picture."""


def loss_weights(latents: torch.Tensor, landscape: torch.Tensor) -> torch.Tensor:
    """Weights (n, 1, height, width) with a mean of 1 for latents (n, 4, height, width).

    An object is what differs from the latents' rim, and the latents next to it: with equal weights
    on both sides of an edge the mean that a denoiser predicts stays where it is.
    """
    rim = torch.cat(
        [latents[..., 0, :], latents[..., -1, :], latents[..., :, 0], latents[..., :, -1]], dim=2
    )
    ground = rim.median(dim=2).values[..., None, None]
    apart = (latents - ground).norm(dim=1, keepdim=True)
    object_ = (apart > 0.25 * apart.amax((2, 3), keepdim=True)).float()
    near = F.max_pool2d(object_, 3, stride=1, padding=1)
    weights = 1 + EXTRA * near * (~landscape[:, None, None, None])
    return weights / weights.mean()
