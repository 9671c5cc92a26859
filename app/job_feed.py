"""News of all jobs of one owner, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from app.domain.events import NumberedEvent, Progressed
from app.domain.job import Job
from app.job_board import JobBoard

_ROOM = 1000
"""Events that may wait for a slow reader; then it is told anew how everything stands."""


class _Reader:
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.behind = True
        self.news: list[tuple[Job, NumberedEvent]] = []
        self.arrived = asyncio.Event()


class JobFeed:
    """What you can rely on: a reader is told of every unfinished job, and then of every event after."""

    def __init__(self, board: JobBoard) -> None:
        self._board = board
        self._readers: set[_Reader] = set()
        board.observe(self._hear)

    async def follow(self, owner: str) -> AsyncIterator[Job | tuple[Job, NumberedEvent]]:
        """A `Job` is how one stands; it comes at the beginning, and when too much was missed.

        Previews are left out. It has no end but the caller's.
        """
        reader = _Reader(owner)
        self._readers.add(reader)
        try:
            while True:
                if reader.behind:
                    reader.behind = False
                    reader.news.clear()
                    for job in self._board.going_on(owner):
                        yield job
                while reader.news and not reader.behind:
                    yield reader.news.pop(0)
                if not reader.behind:
                    reader.arrived.clear()
                    await reader.arrived.wait()
        finally:
            self._readers.discard(reader)

    def _hear(self, job: Job, numbered: NumberedEvent) -> None:
        for reader in self._readers:
            if reader.owner != job.owner:
                continue
            if len(reader.news) >= _ROOM:
                reader.behind = True
            elif not reader.behind:
                reader.news.append((job, _bare(numbered)))
            reader.arrived.set()


def _bare(numbered: NumberedEvent) -> NumberedEvent:
    event = numbered.event
    if isinstance(event, Progressed) and event.preview is not None:
        return msgspec.structs.replace(numbered, event=msgspec.structs.replace(event, preview=None))
    return numbered
