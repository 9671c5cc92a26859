"""Who waits for which job, and what becomes of it when nobody does."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable

FOREVER = math.inf
"""A grace without end: the job is drawn whether or not anybody waits."""


class Attendance:
    """Counts those who wait; `cancel` ends a job whose last one has left, after the job's grace."""

    def __init__(self, cancel: Callable[[str], Awaitable[None]]) -> None:
        self._cancel = cancel
        self._present: Counter[str] = Counter()
        self._grace: dict[str, float] = {}
        self._timers: set[asyncio.Task[None]] = set()

    def grant(self, job_id: str, seconds: float) -> None:
        """How long the job may go on unattended; nothing when never granted."""
        if seconds:
            self._grace[job_id] = seconds

    def forget(self, job_id: str) -> None:
        """The job has ended: nothing more will be asked about it."""
        self._grace.pop(job_id, None)

    def attend(self, job_id: str) -> None:
        self._present[job_id] += 1

    async def leave(self, job_id: str) -> None:
        self._present[job_id] -= 1
        if self._present[job_id] > 0:
            return
        del self._present[job_id]
        grace = self._grace.get(job_id, 0.0)
        if grace == 0.0:
            await self._cancel(job_id)
        elif grace != FOREVER:
            timer = asyncio.create_task(self._cancel_later(job_id, grace))
            self._timers.add(timer)
            timer.add_done_callback(self._timers.discard)

    async def _cancel_later(self, job_id: str, grace: float) -> None:
        await asyncio.sleep(grace)
        if not self._present[job_id]:
            del self._present[job_id]
            self._grace.pop(job_id, None)
            await self._cancel(job_id)
