"""Tells waiting jobs their place, how long it will be, and why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

from app.domain.events import Queued
from app.job_board import JobBoard
from app.scheduling.forecast import Outlook
from app.scheduling.schedule import Entry, Schedule
from app.workers.base import SlotInfo

_SHARE_OF_TIME = 0.1
"""At most this share of the gateway's time goes into it; what changes meanwhile is told later."""

_FEW = 3
"""Jobs whose news come together, and are then waited for: of many, who follows the last would hear it
late."""

_SPREAD = 0.5
"""Seconds over which the news of all are spread, where they are more than a few."""


class QueueNews:
    """`slots` gives the slots now, `warming` the ids of those that take no job yet."""

    def __init__(
        self,
        schedule: Schedule,
        board: JobBoard,
        slots: Callable[[], Mapping[str, SlotInfo]],
        warming: Callable[[], Collection[str]],
    ) -> None:
        self._schedule = schedule
        self._board = board
        self._slots = slots
        self._warming = warming
        self._not_before = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._pending: list[tuple[int, Entry, Outlook]] = []
        self._made = 0.0
        self._next: asyncio.TimerHandle | None = None

    def close(self) -> None:
        for timer in (self._later, self._next):
            if timer is not None:
                timer.cancel()

    def tell(self, *, at_once: bool = False, all_of_them: bool = False) -> None:
        """Tell those whose place has changed, or all: from now on, or soon.

        Who was never told anything comes first, and then who heard last longest ago.
        """
        now = time.monotonic()
        if not self._schedule.waiting:
            return
        if now < self._not_before and not at_once:
            if self._later is None:
                loop = asyncio.get_running_loop()
                self._later = loop.call_later(self._not_before - now, self._tell_late)
            return
        slots = self._slots()
        outlooks = self._schedule.outlooks(slots, self._warming(), now)
        order = enumerate(self._schedule.order(slots.values(), now), start=1)
        news = [
            (place, entry, outlooks[entry.job.id])
            for place, entry in order
            if all_of_them or entry.told_position != place
        ]
        self._pending = sorted(news, key=lambda one: one[1].told_at)
        self._made = now
        if self._next is not None:
            self._next.cancel()
        self._tell_few(_SPREAD * _FEW / max(1, len(news)))
        self._not_before = now + (time.monotonic() - now) / _SHARE_OF_TIME

    def _tell_late(self) -> None:
        self._later = None
        self.tell()

    def _tell_few(self, pause: float) -> None:
        now = time.monotonic()
        few, self._pending = self._pending[:_FEW], self._pending[_FEW:]
        for place, entry, outlook in few:
            if entry.job.id in self._schedule.waiting:
                start, end = (
                    max(0.0, at - now + self._made) for at in (outlook.start, outlook.end)
                )
                entry.told_position, entry.told_at = place, now
                reason, floor = self._reason(entry, place, start), entry.meter.floor
                queued = Queued(place, entry.meter.wait(end), reason, floor)
                self._board.publish(entry.job.id, queued)
        loop = asyncio.get_running_loop()
        self._next = loop.call_later(pause, self._tell_few, pause) if self._pending else None

    def _reason(self, entry: Entry, position: int, start: float) -> str:
        """Why a job waits. Names models and numbers, never what others draw."""
        slots = self._slots().values()
        if not any(slot.state == "up" for slot in slots):
            return "worker_starting"
        running = sum(not other.ended for other in self._schedule.running.values())
        if position == 1 and not any(entry.card.id in slot.models for slot in slots):
            load = entry.standing.load if entry.standing else 0.0
            return f"waiting_for_model: {entry.card.id}, ~{start + load:.1f} s"
        ahead = position - 1 + running
        if not ahead or start <= 0.0:
            return "waiting_for_worker"
        return f"behind {ahead} job{'s' if ahead > 1 else ''}, ~{start:.1f} s"
