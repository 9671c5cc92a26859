"""All parts below the front doors, started in order and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from app.authentication import Authenticator
from app.catalogue import Catalogue
from app.gpu_scheduler import GpuScheduler
from app.housekeeping import Housekeeping
from app.job_board import JobBoard
from app.metrics import Metrics
from app.service import ImageService
from app.store.database import Database
from app.store.keys import KeyRing
from app.store.links import Links
from app.store.pictures import PictureStore
from app.store.spending import Ledger
from app.tracing import Tracing
from app.webhooks.outbox import Webhooks

_LAST_WEBHOOKS = 2.0
"""Seconds that webhooks get to be delivered at the end."""


class Gateway:
    """`service` is for the front doors; it answers from the end of `start` to that of `end_jobs`."""

    def __init__(
        self,
        service: ImageService,
        scheduler: GpuScheduler,
        board: JobBoard,
        database: Database,
        pictures: PictureStore,
        housekeeping: Housekeeping,
        webhooks: Webhooks,
        keys: KeyRing,
        ledger: Ledger,
        links: Links,
        authenticator: Authenticator,
        metrics: Metrics,
        tracing: Tracing | None = None,
        *,
        reread: Callable[[], Catalogue],
        remind: Callable[[], Awaitable[None]],
    ) -> None:
        self.keys = keys
        self.ledger = ledger
        self.links = links
        self.authenticator = authenticator
        self.service = service
        self.scheduler = scheduler
        self.metrics = metrics
        self.tracing = tracing
        self._reread = reread
        self._remind = remind
        self._board = board
        self._database = database
        self._pictures = pictures
        self._housekeeping = housekeeping
        self._webhooks = webhooks
        self._tidying: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the store, so that a mistake shows before anything else is begun.

        Raises StoreRefused, StoreUnavailable.
        """
        await self._database.start()

    async def start(self, *, resume: bool = True) -> None:
        """Open the store, start the workers, and take up the jobs and the webhooks that an earlier
        process has left.

        A process that draws one picture and ends leaves those alone: no `resume`.

        Raises StoreRefused, StoreUnavailable.
        """
        await self.open()
        await self._pictures.open()
        await self._housekeeping.load()
        await self.scheduler.start()
        if resume:
            await self._remind()
            await self.service.resume()
        self._tidying = asyncio.create_task(self._housekeeping.run())
        self._watching = asyncio.create_task(self.metrics.watch_the_loop())

    async def end_jobs(self, drain_s: float = 0.0) -> None:
        """Give running jobs `drain_s` seconds; then all who wait get an answer."""
        await self.scheduler.close(drain_s)
        await self._board.close()

    async def reload(self) -> None:
        """Read cards, styles and upscalers anew; see `ImageService.renew`.

        Raises what `reread` raises, and then nothing has changed.
        """
        await self.service.renew(await asyncio.to_thread(self._reread))

    def hurry(self) -> None:
        """Let no job that is being ended have more time."""
        self.scheduler.hurried = True

    async def close(self) -> None:
        """Write down what is left to write, and let go of everything."""
        await self.end_jobs()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self.service.shelf.close)
        if self._tidying is not None:
            self._tidying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tidying
            await self._housekeeping.save()
        await self._webhooks.close(_LAST_WEBHOOKS)
        await self._pictures.close()
        await self._database.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
