"""One model of a worker: where it is, who uses it, and why it is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import msgspec

from app.domain.errors import EaselError, error_from
from app.domain.model_card import ModelCard
from app.engines.base import Engine

State = Literal["coming", "here", "leaving", "parked", "dropping"]


@runtime_checkable
class Parkable(Protocol):
    """An engine whose weights can leave the device and come back, without the disk."""

    def park(self) -> None:
        """Leave the device; a copy of the weights stays in host memory until `Engine.unload`."""

    def unpark(self) -> None:
        """Be again as after `Engine.load`. Raises OutOfMemory and is still parked then."""


class Resident:
    """A model and where it is. `users` counts those who use it or wait for it to come.

    coming -> here -> leaving -> parked, or gone; parked -> coming, or dropping -> gone.
    """

    def __init__(self, card: ModelCard, size: int) -> None:
        self.card = card
        self.size = size
        self.state: State = "coming"
        self.users = 0
        self.idle_since = 0.0
        self.copied = False
        self.unwanted = False
        self.failure: EaselError | None = None
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(f"model {self.card.id} has no engine")
        return self._engine

    @engine.setter
    def engine(self, engine: Engine | None) -> None:
        self._engine = engine

    @property
    def on_device(self) -> bool:
        """Whether it takes memory there, or is about to."""
        return self.state in ("coming", "here", "leaving")

    def set_out(self) -> None:
        """It leaves from where it is."""
        self.state = "dropping" if self.state == "parked" else "leaving"

    def leaves(self) -> bool:
        """Whether nobody wants it any more, nor uses it; then it sets out."""
        going = self.idle and self.unwanted
        if going:
            self.set_out()
        return going

    @property
    def idle(self) -> bool:
        return self.state == "here" and not self.users


def fresh(error: EaselError) -> EaselError:
    """The same error without its traceback, which would keep what failed in memory."""
    return error_from(error.code, error.message, error.param)


def without(models: list[Resident], some: list[Resident]) -> list[Resident]:
    return [model for model in models if model not in some]


def fewest(
    models: list[Resident], enough: Callable[[list[Resident]], bool]
) -> list[Resident] | None:
    """Of `models`, the first to go foremost, those that have to go until it is `enough`; None if it
    never is."""
    going: list[Resident] = []
    for model in models:
        going.append(model)
        if enough(going):
            break
    else:
        return None
    # A small one that was chosen before a large one may not be in the way after all.
    for model in sorted(going, key=lambda one: one.size):
        fewer = without(going, [model])
        if enough(fewer):
            going = fewer
    return going


class Failure(msgspec.Struct, frozen=True):
    """Why a model could not be loaded, and until when that is the answer. Times are monotonic."""

    error: EaselError
    until: float
    pause: float
