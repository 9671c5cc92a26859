"""Has a worker hold a model that somebody asks for, outside of any job."""

from __future__ import annotations

import asyncio
import itertools

from app.domain.errors import ModelUnavailable, TimedOut, Unavailable
from app.domain.model_card import ModelCard
from app.model_files.shelf import ModelShelf
from app.workers.base import WorkerLost, WorkerPool

_LOADS = itertools.count()
_LOOK_SECONDS = 0.2
_PATIENCE = 1800.0
"""Seconds: as long as a run may wait for its model."""


async def bring(pool: WorkerPool, shelf: ModelShelf, card: ModelCard) -> None:
    """Load the model where it is held already, or else where fewest are; its files are fetched first,
    where that is allowed.

    Raises Unavailable, TimedOut, ModelUnavailable, and what `Engine.load` raises.
    """
    up = [slot for slot in pool.slots().values() if slot.state == "up"]
    if not up:
        raise Unavailable("No worker is up yet; try again in some seconds.")
    name = card.id
    slot = min(
        up, key=lambda one: (name not in one.models, name not in one.parked, len(one.models))
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            await pool.call(slot.id, "load", await _fetched(shelf, name))
    except WorkerLost as lost:
        raise Unavailable(f"The worker died while it loaded model {name}.") from lost
    except TimeoutError as late:
        raise TimedOut(f"Model {name} was not loaded within {_PATIENCE:g} s.") from late


async def _fetched(shelf: ModelShelf, model: str) -> ModelCard:
    """The model's card with paths, once its files are here."""
    who = f"load {next(_LOADS)}"
    shelf.want(model, who)
    try:
        while (card := shelf.local(model)) is None:
            files = shelf.state(model)
            if files.state != "downloading":
                text = files.reason or f"Model {model} is not on this server; it has to be pulled."
                raise ModelUnavailable(text)
            await asyncio.sleep(_LOOK_SECONDS)
        return card
    finally:
        shelf.release(model, who)
