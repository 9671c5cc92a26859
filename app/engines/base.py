"""All that an engine must know of the house, and all that the house knows of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from app.domain.events import EngineEvent
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest

Report = Callable[[EngineEvent], None]
"""Tells what happened. Raises `domain.errors.Cancelled` when the run is to stop: let it pass."""


class Engine(Protocol):
    """One loaded model. Methods block; `generate` may be called by several threads at once."""

    def load(self, card: ModelCard, device: str) -> None:
        """Bring the weights to `device` ("cpu", "cuda", "mps" …).

        Raises:
            ModelUnavailable: the weights are missing, damaged, or not safetensors.
            OutOfMemory: they do not fit.
        """

    def generate(self, request: GenerationRequest, report: Report) -> None:
        """Draw. Reports `PhaseStarted("preparing")`, `PhaseStarted("generating", total_steps)`,
        each `StepFinished`, `PhaseStarted("post_processing")`, and an `ImageFinished` for each of
        the n images as soon as it is encoded.

        Raises:
            Cancelled: `report` raised it; no decoding follows.
            InvalidOutput: the latents hold NaN or infinity.
            OutOfMemory: the request does not fit; the engine stays usable.
        """

    def unload(self) -> None:
        """Let go of the weights. The engine is not used again."""
