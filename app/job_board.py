"""Jobs that are going on here, and their numbered events: in memory for speed, in the store for good.

What you can rely on: a job that was opened is stored before anybody hears of it; events of a job are
numbered from 1 without gaps; exactly one of them is terminal and it is the last; whoever follows a job
from any number sees every later event once, in order, also when the earlier ones are of an earlier
process; nobody sees an event, or a job as it made it, before that event is stored.

When the store fails, the last promise is given up for the sake of those who wait: they see events that
are stored as soon as the store is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import msgspec

from app.domain.errors import NotFound, ShuttingDown
from app.domain.events import TERMINAL, JobEvent, NumberedEvent, Progressed, Started
from app.domain.job import Job
from app.domain.request import GenerationRequest, Terms
from app.store.errors import StorageFull, StoreUnavailable
from app.store.jobs import JobStore, News, Picture

_log = logging.getLogger(__name__)

_KEPT = 64
"""Ended jobs that stay in memory: those who still read them need no disk."""

_WITH_PREVIEWS = 16
"""Ended jobs that keep their previews a while, for followers that have not caught up."""

_PATIENCE = 2.0
"""Seconds that followers wait for a store that does not answer."""

_LAZY = 0.25
"""Seconds that progress may wait to be stored together with more of it, when nobody follows the job."""

_PAUSE = 1.0
"""Seconds between two attempts to store what could not be stored."""

_GOES_ON = "The server is shutting down; the job goes on when it is back."

Observer = Callable[[Job, NumberedEvent], None]


class _Entry(msgspec.Struct):
    """`events` begin after number `base`; `last` and `over` run ahead of what is stored. `readers` want
    every event at once."""

    job: Job
    base: int = 0
    last: int = 0
    attempt: int = 0
    over: bool = False
    gone: bool = False
    readers: int = 0
    events: list[NumberedEvent] = msgspec.field(default_factory=list)
    news: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


class JobBoard:
    """All unfinished jobs of this gateway, and the newest that have ended.

    `clock` gives Unix seconds, `new_id` an id that sorts by age.
    """

    def __init__(
        self, store: JobStore, *, clock: Callable[[], float], new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._entries: dict[str, _Entry] = {}
        self._ended: list[str] = []
        self._outbox: list[News] = []
        self._unstored: list[News] = []
        self._writer: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._repair: asyncio.Task[None] | None = None
        self._observers: list[Observer] = []
        self._greeters: list[Callable[[Job], None]] = []
        self._closing = self._closed = False

    def observe(self, observer: Observer) -> None:
        """Call it with every job and event from now on, once they are seen."""
        self._observers.append(observer)

    def greet(self, greeter: Callable[[Job], None]) -> None:
        """Call it with every job that is opened from now on, by whoever opens it."""
        self._greeters.append(greeter)

    # -- jobs --------------------------------------------------------------------------------------

    async def open(
        self,
        request: GenerationRequest,
        *,
        owner: str,
        door: str,
        terms: Terms | None = None,
        grace: float = 0.0,
        digest: str = "",
        key: str | None = None,
        webhook: str | None = None,
        instead: tuple[GenerationRequest, ...] = (),
    ) -> Job:
        """A new job, which is stored when this returns. Raises StoreUnavailable, StorageFull."""
        now = self._clock()
        job = Job(
            id=self._new_id(),
            owner=owner,
            door=door,
            request=request,
            created=now,
            changed=now,
            terms=terms or Terms(),
            grace=grace,
            digest=digest,
            key=key,
            webhook=webhook,
            instead=instead,
        )
        await self._store.accept(job)
        self._entries[job.id] = _Entry(job)
        for greeter in self._greeters:
            with contextlib.suppress(Exception):  # as below
                greeter(job)
        return job

    async def unfinished(self) -> list[Job]:
        """The jobs that an earlier process has left, oldest first: they are on this board now."""
        jobs = [job for job in await self._store.unfinished() if job.id not in self._entries]
        for job in jobs:
            self._entries[job.id] = _Entry(
                job, base=job.last_event, last=job.last_event, attempt=job.attempt
            )
        return jobs

    async def get(self, job_id: str) -> Job:
        """The job as of its last visible event. Raises NotFound, StoreUnavailable."""
        entry = self._entries.get(job_id)
        return entry.job if entry else await self._store.get(job_id)

    async def with_inputs(self, job_id: str) -> Job:
        """The job with the pictures that it was given. Raises NotFound, StoreUnavailable."""
        return await self._store.with_inputs(job_id)

    def going_on(self, owner: str | None = None) -> list[Job]:
        """Unfinished jobs, of one owner or of all, oldest first."""
        return [
            entry.job
            for entry in self._entries.values()
            if not entry.job.ended and owner in (None, entry.job.owner)
        ]

    def forget(self, job_id: str) -> None:
        """The job was removed from the store; who follows it has seen its last event."""
        if (entry := self._entries.pop(job_id, None)) is not None:
            entry.over = entry.gone = True
            entry.news.set()

    def forget_owner(self, owner: str) -> None:
        """The same, for all jobs of an owner."""
        for job_id in [one for one, entry in self._entries.items() if entry.job.owner == owner]:
            self.forget(job_id)

    # -- events ------------------------------------------------------------------------------------

    def publish(self, job_id: str, event: JobEvent, picture: Picture | None = None) -> None:
        """Append an event; with an `ImageReady`, its picture.

        After a terminal one, further events are dropped: the first end counts.
        """
        entry = self._entries.get(job_id)
        if entry is None or entry.over:
            return
        entry.last += 1
        entry.over = isinstance(event, TERMINAL)
        if isinstance(event, Started):
            entry.attempt = event.attempt
        numbered = NumberedEvent(entry.last, self._clock(), event)
        self._outbox.append(News(job_id, entry.attempt, numbered, picture))
        if isinstance(event, Progressed) and not entry.readers:
            if self._later is None:
                self._later = asyncio.get_running_loop().call_later(_LAZY, self._write_now)
        else:
            self._write_now()

    async def ended(self, job_id: str) -> Job:
        """The job, once it has ended. Raises what `follow` raises."""
        entry = self._entries.get(job_id)
        while entry is not None and not entry.job.ended:
            if entry.gone:
                raise NotFound("There is no such job.", param="id")
            if self._closed:
                raise ShuttingDown(_GOES_ON)
            await entry.news.wait()
        return entry.job if entry else await self._store.get(job_id)

    async def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[NumberedEvent, None]:
        """Every event numbered above `after`, past and to come; ends after the terminal one.

        Raises NotFound and StoreUnavailable at the first step; and ShuttingDown, when this process
        ends before the job.
        """
        seen = max(0, after)
        entry = self._entries.get(job_id)
        if entry is None or seen < entry.base:
            for numbered in await self._store.events(job_id, seen):
                seen = numbered.number
                yield numbered
        if entry is None:
            return
        entry.readers += 1
        try:
            self._write_now()
            async for numbered in self._news_of(entry, seen):
                yield numbered
        finally:
            entry.readers -= 1

    async def _news_of(self, entry: _Entry, seen: int) -> AsyncIterator[NumberedEvent]:
        while True:
            news = entry.news
            while seen < entry.base + len(entry.events):
                seen += 1
                yield entry.events[seen - entry.base - 1]
            if entry.job.ended or entry.gone:
                return
            if self._closed:
                raise ShuttingDown(_GOES_ON)
            await news.wait()

    async def close(self) -> None:
        """Store what is not stored yet, and let all followers go."""
        self._closing = True
        if self._repair is not None:
            self._repair.cancel()
            await asyncio.gather(self._repair, return_exceptions=True)
        self._write_now()
        if self._writer is not None:
            await self._writer
        if self._unstored:
            await self._store_unstored()
        self._closed = True
        for entry in self._entries.values():
            entry.news.set()

    # -- storing -----------------------------------------------------------------------------------

    def _write_now(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._outbox and self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._outbox:
                batch, self._outbox = self._outbox, []
                if self._unstored or not await self._stored(batch):
                    self._unstored += batch
                    if self._repair is None and not self._closing:
                        self._repair = asyncio.create_task(self._store_later())
                for news in batch:
                    self._reveal(news)
        finally:
            self._writer = None

    async def _stored(self, batch: Sequence[News]) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._store.append(batch)
        except (StoreUnavailable, StorageFull, TimeoutError) as error:
            _log.error("%d events are not stored yet: %s", len(batch), type(error).__name__)
            return False
        except Exception:
            # Not to be repaired by trying again; those who wait must not wait for ever.
            _log.exception("%d events are lost to history", len(batch))
        return True

    async def _store_later(self) -> None:
        try:
            while self._unstored:
                await asyncio.sleep(_PAUSE)
                await self._store_unstored()
        finally:
            self._repair = None

    async def _store_unstored(self) -> None:
        """In order; what comes meanwhile is behind it. An event that did arrive counts again."""
        batch = list(self._unstored)
        if await self._stored(batch):
            del self._unstored[: len(batch)]

    def _reveal(self, news: News) -> None:
        entry = self._entries.get(news.job_id)
        if entry is None:
            return
        entry.events.append(news.event)
        entry.job.apply(news.event)
        if entry.job.ended:
            entry.job.request = entry.job.request.without_pictures()
            self._ended.append(news.job_id)
            self._forget_previews(self._ended[-_WITH_PREVIEWS - 1 : -_WITH_PREVIEWS])
            while len(self._ended) > _KEPT and not self._unstored:
                self._entries.pop(self._ended.pop(0), None)
        entry.news.set()
        entry.news = asyncio.Event()
        for observer in self._observers:
            with contextlib.suppress(Exception):  # nobody who looks on may hold up a job
                observer(entry.job, news.event)

    def _forget_previews(self, job_ids: list[str]) -> None:
        """Unfinished pictures are large, and nobody asks for them once the finished ones are there."""
        for job_id in job_ids:
            entry = self._entries.get(job_id)
            events = entry.events if entry else []
            for place, numbered in enumerate(events):
                if isinstance(numbered.event, Progressed) and numbered.event.preview:
                    bare = msgspec.structs.replace(numbered.event, preview=None)
                    events[place] = msgspec.structs.replace(numbered, event=bare)
