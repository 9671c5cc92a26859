"""Jobs and their numbered, replayable events.

What you can rely on: events of a job are numbered from 1 without gaps; exactly one of them is
terminal and it is the last; whoever follows a job from any number sees every later event once, in
order; an ended job can be read until `keep` newer ones have ended, without its input pictures and,
soon, without previews.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from app.domain.errors import NotFound
from app.domain.events import TERMINAL, JobEvent, NumberedEvent, Progressed
from app.domain.job import Job
from app.domain.request import GenerationRequest, Terms

_WITH_PREVIEWS = 16
"""Ended jobs that keep their previews a while, for followers that have not caught up."""


class _Entry(msgspec.Struct):
    job: Job
    events: list[NumberedEvent] = msgspec.field(default_factory=list)
    news: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


class JobBoard:
    """All jobs of this gateway. `clock` gives Unix seconds, `new_id` an id that sorts by age."""

    def __init__(self, *, keep: int, clock: Callable[[], float], new_id: Callable[[], str]) -> None:
        self._keep = keep
        self._clock = clock
        self._new_id = new_id
        self._entries: dict[str, _Entry] = {}
        self._ended: list[str] = []

    def open(
        self, request: GenerationRequest, *, owner: str, door: str, terms: Terms | None = None
    ) -> Job:
        now = self._clock()
        job = Job(
            id=self._new_id(),
            owner=owner,
            door=door,
            request=request,
            created=now,
            changed=now,
            terms=terms or Terms(),
        )
        self._entries[job.id] = _Entry(job)
        return job

    def publish(self, job_id: str, event: JobEvent) -> None:
        """Append an event. After a terminal one, further events are dropped: the first end counts."""
        entry = self._entries.get(job_id)
        if entry is None or entry.job.ended:
            return
        numbered = NumberedEvent(len(entry.events) + 1, self._clock(), event)
        entry.events.append(numbered)
        entry.job.apply(numbered)
        entry.news.set()
        entry.news = asyncio.Event()
        if isinstance(event, TERMINAL):
            entry.job.request = entry.job.request.without_pictures()
            self._ended.append(job_id)
            self._forget_previews(self._ended[-_WITH_PREVIEWS - 1 : -_WITH_PREVIEWS])
            while len(self._ended) > self._keep:
                self._entries.pop(self._ended.pop(0), None)

    def _forget_previews(self, job_ids: list[str]) -> None:
        """Unfinished pictures are large, and nobody asks for them once the finished ones are there."""
        for job_id in job_ids:
            events = self._entries[job_id].events
            for place, numbered in enumerate(events):
                if isinstance(numbered.event, Progressed) and numbered.event.preview:
                    bare = msgspec.structs.replace(numbered.event, preview=None)
                    events[place] = msgspec.structs.replace(numbered, event=bare)

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        return self._entry(job_id).job

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return [entry.job for entry in reversed(self._entries.values())]

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """Every event numbered above `after`, past and to come; ends after the terminal one.

        Raises NotFound at the first step.
        """
        entry = self._entry(job_id)
        seen = max(0, after)
        while True:
            news = entry.news
            while seen < len(entry.events):
                seen += 1
                yield entry.events[seen - 1]
            if entry.job.ended:
                return
            await news.wait()

    def _entry(self, job_id: str) -> _Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise NotFound("There is no such job.", param="id")
        return entry
