"""How fast bytes come, told by the last seconds."""

from __future__ import annotations

from collections import deque

_SECONDS = 10.0
_GRAIN = 0.05
_ENOUGH = 1.0
"""Seconds of measurement before a rate is told."""


class Pace:
    """Takes counts of bytes at times of one monotonic clock, in order."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()  # something is fetched again
        if len(self._seen) > 1 and now - self._seen[-2][0] < _GRAIN:
            self._seen.pop()
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _SECONDS:
            self._seen.popleft()

    def bytes_per_second(self, now: float) -> float:
        """Over the last seconds, those included in which nothing came; 0 as long as it is not known."""
        if not self._seen or now - self._seen[0][0] < _ENOUGH:
            return 0.0
        began, before = self._seen[0]
        return (self._seen[-1][1] - before) / (now - began)
