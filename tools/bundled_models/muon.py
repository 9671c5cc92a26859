"""Muon: momentum whose steps are made orthogonal, which small models learn faster with.

After Keller Jordan's "Muon: An optimizer for hidden layers in neural networks" (2024), its steps
scaled so that their size matches AdamW's and one learning rate serves both (Moonshot, 2025).
"""

from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""The quintic's coefficients, from the same place."""


def orthogonal(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """About the nearest orthogonal matrices: (..., rows, columns) in, bfloat16 out."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more; a convolution counts as rows of outputs."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        """`lr` as one would give AdamW."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; weights of equal shape are made orthogonal together."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                by_shape.setdefault((ahead.shape[0], ahead.shape[1]), []).append((weight, ahead))
            for (rows, columns), members in by_shape.items():
                steps = orthogonal(torch.stack([ahead for _, ahead in members]))
                size = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for (weight, _), step in zip(members, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(size * step.to(weight.dtype).view_as(weight))
