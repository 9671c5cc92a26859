"""Has a worker hold a model that somebody asks for, outside of any job."""

from __future__ import annotations

import asyncio

from app.domain.errors import TimedOut, Unavailable
from app.domain.model_card import ModelCard
from app.workers.base import WorkerLost, WorkerPool

_PATIENCE = 1800.0
"""Seconds: as long as a run may wait for its model."""


async def bring(pool: WorkerPool, card: ModelCard) -> None:
    """Load the model where it is held already, or else where fewest are.

    Raises Unavailable, TimedOut, and what `Engine.load` raises.
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
            await pool.call(slot.id, "load", card)
    except WorkerLost as lost:
        raise Unavailable(f"The worker died while it loaded model {name}.") from lost
    except TimeoutError as late:
        raise TimedOut(f"Model {name} was not loaded within {_PATIENCE:g} s.") from late
