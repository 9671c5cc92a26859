"""All that an engine must know of the house, and all that the house knows of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from app.domain.events import EngineEvent, ImageFinished
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest

Report = Callable[[EngineEvent], None]
"""Tells what happened. Raises `domain.errors.Cancelled` when the run is to stop: let it pass."""


class Sharing(msgspec.Struct, frozen=True):
    """How a run shares its device with others.

    `rank` is (class, due): at every step the run of the lowest rank goes first; `due` is comparable
    among the runs of one worker and has no other meaning. `batch` is how many pictures may share one
    forward of the denoiser.
    """

    rank: tuple[int, float] = (0, 0.0)
    batch: int = 1


ALONE = Sharing()


class Engine(Protocol):
    """One loaded model. Methods block; `generate` may be called by several threads at once."""

    @property
    def memory(self) -> int:
        """Bytes of the loaded weights, with those of LoRAs."""

    def load(self, card: ModelCard, device: str) -> None:
        """Bring the weights to `device` ("cpu", "cuda", "mps" …).

        Raises:
            ModelUnavailable: the weights are missing, damaged, or not safetensors.
            OutOfMemory: they do not fit.
        """

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        """Draw. Reports `PhaseStarted("preparing")`, `PhaseStarted("generating", total_steps)`,
        each `StepFinished`, `PhaseStarted("post_processing")`, and an `ImageFinished` for each of
        the n images as soon as it is encoded.

        Raises:
            Cancelled: `report` raised it; no decoding follows.
            InvalidOutput: the latents hold NaN or infinity.
            InvalidRequest: a LoRA cannot be used with this model.
            OutOfMemory: the request does not fit; the engine stays usable.
        """

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        """Seconds of one forward of the denoiser for requests like this one, by how many share it.

        Measured now; empty where forwards cannot be shared.
        """

    def unload(self) -> None:
        """Let go of the weights. The engine is not used again."""


Generate = Callable[[GenerationRequest, Report, Sharing], None]
"""`Engine.generate`."""


@runtime_checkable
class Controllable(Protocol):
    """What an engine can beside whose pictures control networks have a say in."""

    def listens_to(self, control: ModelCard) -> bool:
        """Whether the network is loaded."""

    def under(self, control: ModelCard) -> Generate:
        """How to draw under the network, which is loaded if it is not.

        Raises:
            ModelUnavailable: its weights are missing, damaged, or not safetensors.
            OutOfMemory: they do not fit.
            InvalidRequest: it is made for another kind of model.
        """


@runtime_checkable
class Enlarging(Protocol):
    """What an upscaler can beside."""

    def enlarge(
        self, drawn: ImageFinished, request: GenerationRequest, report: Report, sharing: Sharing
    ) -> None:
        """Report a picture that was just drawn, as PNG, in the size and format of `request`."""
