"""Places in the queue: how many there are, and when there may be one again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.domain.errors import QueueFull


class QueueRoom:
    """`waiting` says how many jobs wait now, `until_next` the seconds until one of them starts."""

    def __init__(
        self, limit: int, waiting: Callable[[], int], until_next: Callable[[], float]
    ) -> None:
        self._limit = limit
        self._waiting = waiting
        self._until_next = until_next
        self._held = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A place in the queue, held while the job is made. Raises QueueFull."""
        self.check()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def check(self) -> None:
        """Raises QueueFull."""
        if (count := self._waiting() + self._held) >= self._limit:
            seconds = min(59, max(1, math.ceil(self._until_next())))
            raise QueueFull(
                f"{count} jobs are waiting, as many as may. Try again in {seconds} s.",
                retry_after=seconds,
            )
