"""What has to be done now and then: look for room, keep times, forget, tidy up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from app.archive import Archive
from app.scheduling.phase_times import PhaseTimes
from app.store.errors import StorageFull, StoreUnavailable
from app.store.history import Limits
from app.store.spending import Ledger
from app.store.timings import Timings

_log = logging.getLogger(__name__)

_SAVE_SECONDS = 2.0
_FORGET_SECONDS = 60.0
_SWEEP_SECONDS = 6 * 3600.0


class Housekeeping:
    """Done by `run`, one thing after the other; what fails is told in the log and tried again."""

    def __init__(
        self,
        times: PhaseTimes,
        timings: Timings,
        archive: Archive,
        limits: Limits,
        ledger: Ledger,
    ) -> None:
        self._times = times
        self._timings = timings
        self._archive = archive
        self._limits = limits
        self._ledger = ledger

    async def load(self) -> None:
        """Take in the times that earlier processes have measured. Raises StoreUnavailable."""
        await self._attempt("looking for room", self._archive.look_for_room)
        self._times.load(await self._timings.load())
        await self._ledger.load()

    async def save(self) -> None:
        """Keep what was measured since."""
        await self._attempt("keeping measured times", self._save)
        await self._attempt("keeping what was spent", self._ledger.save)

    async def run(self) -> None:
        forget_at, sweep_at = time.monotonic(), time.monotonic() + _FORGET_SECONDS
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            await self.save()
            await self._attempt("looking for room", self._archive.look_for_room)
            if (now := time.monotonic()) >= forget_at:
                forget_at = now + _FORGET_SECONDS
                await self._attempt("forgetting old jobs", self._forget)
            if now >= sweep_at:
                sweep_at = now + _SWEEP_SECONDS
                await self._attempt("tidying up pictures", self._archive.sweep)

    async def _save(self) -> None:
        news = self._times.unsaved()
        await self._timings.save(news)
        self._times.saved(news)

    async def _forget(self) -> None:
        if removed := await self._archive.retain(self._limits):
            _log.info("%d jobs were older or more than the settings keep", removed)

    async def _attempt(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except (StoreUnavailable, StorageFull) as error:
            _log.warning("%s has to wait: %s", what, error.message)
        except Exception:
            _log.exception("%s", what)
