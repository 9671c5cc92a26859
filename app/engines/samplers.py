"""Builds the diffusers scheduler that a sampler name stands for."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
from diffusers import FlowMatchHeunDiscreteScheduler

from app.domain.errors import ModelUnavailable
from app.domain.model_card import ModelCard


class FluxHeunScheduler(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Stock Heun for flow matching, callable the way that Flux pipelines call their scheduler.

    Those, and most others since, pass `sigmas` and `mu`; the stock class takes neither (diffusers 0.42)
    and chooses its own spacing, which is kept. They also set a begin index before the loop, as this
    class allows.
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


def build(card: ModelCard, name: str, stored_config: Any) -> Any:
    """A fresh scheduler for one run. `stored_config` is that of the model folder's own scheduler,
    which the card overrides, and the sampler's name both."""
    sampler = card.kind.samplers[name]
    return _class(sampler.scheduler).from_config(
        stored_config, **{**card.scheduler, **sampler.config}
    )


def check(card: ModelCard) -> None:
    """Raises ModelUnavailable: the card overrides something that none of its samplers has."""
    kinds = [_class(sampler.scheduler) for sampler in card.kind.samplers.values()]
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    if unknown := sorted(set(card.scheduler) - known):
        raise ModelUnavailable(
            f"The card of model {card.id} overrides {', '.join(unknown)} in [scheduler], which no "
            "sampler of it knows."
        )


def _class(name: str) -> Any:
    heun = name == "FlowMatchHeunDiscreteScheduler"
    return FluxHeunScheduler if heun else getattr(diffusers, name)
