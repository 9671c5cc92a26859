"""How long a run may take, when some of its time belongs to others."""

from __future__ import annotations

import asyncio
import time

from app.domain.events import EngineEvent, StepFinished, Waited


class RunClock:
    """Gives a run back the time for which it stood behind others: that was not drawing."""

    def __init__(self, clock: asyncio.Timeout) -> None:
        self._clock = clock
        self._heard = time.monotonic()
        self._given = 0.0

    def heard(self, event: EngineEvent) -> None:
        now = time.monotonic()
        if isinstance(event, Waited):
            self._give(now - self._heard)
        elif isinstance(event, StepFinished):
            self._give(max(0.0, event.waited - self._given))
            self._given = 0.0
        self._heard = now

    def _give(self, seconds: float) -> None:
        self._given += seconds
        if (when := self._clock.when()) is not None:
            self._clock.reschedule(when + seconds)
