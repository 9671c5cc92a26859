"""Builds the diffusers scheduler that a sampler name stands for."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchHeunDiscreteScheduler

from app.domain import samplers


class FluxHeunScheduler(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Stock Heun for flow matching, callable the way that Flux pipelines call their scheduler.

    They always pass `sigmas` and `mu`; the stock class takes neither (diffusers 0.42) and chooses
    its own spacing, which is kept. They also set a begin index before the loop, as this class allows.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        steps = num_inference_steps if num_inference_steps is not None else len(sigmas)
        super().set_timesteps(steps, device)


def build(name: str, family: str, stored_config: Any) -> Any:
    """A fresh scheduler for one run. `stored_config` is that of the model folder's own scheduler."""
    sampler = samplers.BY_FAMILY[family][name]
    kind = (
        FluxHeunScheduler
        if sampler.scheduler == "FlowMatchHeunDiscreteScheduler"
        else getattr(diffusers, sampler.scheduler)
    )
    return kind.from_config(stored_config, **sampler.config)
