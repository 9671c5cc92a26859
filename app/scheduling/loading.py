"""Models and devices, seen from outside of any job: what is held, what fits, and having one loaded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable

from app.domain.errors import EaselError, TimedOut, Unavailable
from app.domain.model_card import ModelCard
from app.model_files.shelf import ModelShelf
from app.scheduling.expectations import Expectations, device_kind
from app.workers.base import WorkerLost, WorkerPool

_LOADS = itertools.count()
_LOOK_SECONDS = 0.2
_PATIENCE = 1800.0
"""Seconds: as long as a run may wait for its model."""


class Loader:
    """What may be asked of the workers about models."""

    def __init__(self, pool: WorkerPool, shelf: ModelShelf, expectations: Expectations) -> None:
        self._pool = pool
        self._shelf = shelf
        self._expectations = expectations

    def held(self) -> set[str]:
        """The models that some worker holds, ready to draw."""
        return {model for slot in self._pool.slots().values() for model in slot.models}

    def fits(self, card: ModelCard) -> bool:
        """Whether some device has room for the model's weights, as far as that is known."""
        card = self._shelf.local(card.id) or card
        return any(
            not slot.room or self._expectations.memory(card, device_kind(slot.device)) <= slot.room
            for slot in self._pool.slots().values()
        )

    async def let_go(self, cards: Iterable[ModelCard]) -> None:
        """Have all workers let go of these models, each as soon as nobody uses it."""
        for card, slot in itertools.product(cards, self._pool.slots().values()):
            if card.id in (*slot.models, *slot.parked):
                with contextlib.suppress(WorkerLost, EaselError):  # then it holds none
                    await self._pool.call(slot.id, "unload", card)

    async def bring(self, card: ModelCard) -> None:
        """Load the model where it is held already, or else where fewest are; its files are fetched
        first, where that is allowed.

        Raises Unavailable, TimedOut, ModelUnavailable, and what `Engine.load` raises.
        """
        up = [slot for slot in self._pool.slots().values() if slot.state == "up"]
        if not up:
            raise Unavailable("No worker is up yet; try again in some seconds.")
        name = card.id
        slot = min(
            up, key=lambda one: (name not in one.models, name not in one.parked, len(one.models))
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._pool.call(slot.id, "load", await self._fetched(name))
        except WorkerLost as lost:
            raise Unavailable(f"The worker died while it loaded model {name}.") from lost
        except TimeoutError as late:
            raise TimedOut(f"Model {name} was not loaded within {_PATIENCE:g} s.") from late

    async def _fetched(self, model: str) -> ModelCard:
        """The model's card with paths, once its files are here."""
        who = f"load {next(_LOADS)}"
        self._shelf.want(model, who)
        try:
            while (card := self._shelf.local(model)) is None:
                if self._shelf.state(model).state != "downloading":
                    raise self._shelf.refusal(model)
                await asyncio.sleep(_LOOK_SECONDS)
            return card
        finally:
            self._shelf.release(model, who)
