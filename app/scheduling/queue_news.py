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

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()

    def tell(self, *, at_once: bool = False, all_of_them: bool = False) -> None:
        """Tell those whose place has changed, or all: at once, or soon."""
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
        for position, entry in enumerate(self._schedule.order(slots.values(), now), start=1):
            outlook = outlooks[entry.job.id]
            eta = entry.meter.wait(outlook.end)
            if all_of_them or entry.told_position != position:
                entry.told_position = position
                reason = self._reason(entry, position, outlook, slots.values())
                self._board.publish(entry.job.id, Queued(position, eta, reason, entry.meter.floor))
        self._not_before = now + (time.monotonic() - now) / _SHARE_OF_TIME

    def _tell_late(self) -> None:
        self._later = None
        self.tell()

    def _reason(
        self, entry: Entry, position: int, outlook: Outlook, slots: Collection[SlotInfo]
    ) -> str:
        """Why a job waits. Names models and numbers, never what others draw."""
        if not any(slot.state == "up" for slot in slots):
            return "worker_starting"
        running = sum(not other.ended for other in self._schedule.running.values())
        if position == 1 and not any(entry.card.id in slot.models for slot in slots):
            load = entry.standing.load if entry.standing else 0.0
            return f"waiting_for_model: {entry.card.id}, ~{outlook.start + load:.1f} s"
        ahead = position - 1 + running
        if not ahead or outlook.start <= 0.0:
            return "waiting_for_worker"
        return f"behind {ahead} job{'s' if ahead > 1 else ''}, ~{outlook.start:.1f} s"
