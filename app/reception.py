"""Who may have another job taken in: how often a key asks, how much of the queue and of the devices it
has, and how many bytes of pictures wait.

What you can rely on: nothing is exceeded by asking many times at once; what is refused costs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from app.domain.access import Allowance, account_of
from app.domain.errors import QuotaSpent, RateLimited, UploadsFull
from app.domain.job import Job
from app.domain.request import GenerationRequest

_SOON = 5
"""Seconds after which somebody's jobs or pictures may have gone on."""

_LATEST = 59
"""Seconds to wait for what comes later: clients ignore more."""


class Rate(msgspec.Struct, frozen=True):
    """Requests of a minute, and how many of them are left."""

    limit: int
    left: int


class _Bucket(msgspec.Struct):
    tokens: float
    filled: float


class Reception:
    """`allowance` is what an owner of keys may, `spent` the device seconds that he had today.

    `unfinished` are the jobs that wait or run, `expected` the device seconds that a request will take.
    `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        allowance: Callable[[str], Allowance],
        spent: Callable[[str], float],
        seconds_of: Callable[[str], float | None],
        unfinished: Callable[[], Iterable[Job]],
        expected: Callable[[GenerationRequest], float],
        max_queue: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowance = allowance
        self._spent = spent
        self.seconds_of = seconds_of
        self._unfinished = unfinished
        self._expected = expected
        self._max_queue = max_queue
        self._max_bytes = max_bytes
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._entering: list[tuple[str, GenerationRequest]] = []
        self._bytes = 0

    def knock(self, owner: str) -> Rate | None:
        """Somebody asks; None where he may as often as he likes. Raises RateLimited."""
        account = account_of(owner)
        limit = self._allowance(account).requests_per_minute
        if not limit:
            return None
        now = self._clock()
        bucket = self._buckets.setdefault(account, _Bucket(float(limit), now))
        bucket.tokens = min(limit, bucket.tokens + (now - bucket.filled) * limit / 60)
        bucket.filled = now
        if bucket.tokens < 1:
            wait = _within((1 - bucket.tokens) * 60 / limit)
            text = f"This key may ask {limit} times a minute. Try again in {wait} s."
            raise RateLimited(text, retry_after=wait)
        bucket.tokens -= 1
        return Rate(limit, int(bucket.tokens))

    @contextmanager
    def place(self, owner: str, request: GenerationRequest) -> Iterator[None]:
        """Room for one more job, held while it is made. Raises RateLimited, QuotaSpent, UploadsFull."""
        account, size = account_of(owner), bytes_in(request)
        self._check_allowance(account)
        self.receive(size)
        entering = account, request
        self._entering.append(entering)
        try:
            yield
        finally:
            self.release(size)
            self._entering.remove(entering)

    def receive(self, size: int) -> None:
        """So many bytes more are held, until `release`. Raises UploadsFull."""
        if not size:
            return
        waiting = sum(bytes_in(job.request) for job in self._unfinished())
        if waiting + self._bytes + size > self._max_bytes:
            text = "The pictures that wait to be drawn take as much memory as they may."
            raise UploadsFull(text, retry_after=_SOON)
        self._bytes += size

    def release(self, size: int) -> None:
        self._bytes -= size

    def may_run(self, owner: str, running: Iterable[Job]) -> bool:
        """Whether another job of this owner may run beside those."""
        account = account_of(owner)
        limit = self._allowance(account).running_jobs
        return not limit or sum(account_of(job.owner) == account for job in running) < limit

    def _check_allowance(self, account: str) -> None:
        allowed = self._allowance(account)
        own = [job for job in self._unfinished() if account_of(job.owner) == account]
        entering = [request for of, request in self._entering if of == account]
        if allowed.queue_share:
            most = max(1, math.floor(allowed.queue_share * self._max_queue))
            if sum(job.status == "queued" for job in own) + len(entering) >= most:
                text = f"{most} jobs of this key are waiting, as many as may."
                raise RateLimited(text, retry_after=_SOON)
        if most_seconds := allowed.gpu_seconds_per_day:
            coming = sum(map(self._expected, [*(job.request for job in own), *entering]))
            if self._spent(account) + coming >= most_seconds:
                text = f"This key may use {most_seconds:g} s of the devices a day."
                raise QuotaSpent(text, retry_after=_LATEST)


def bytes_in(value: Any) -> int:
    """How many bytes of pictures a request holds, wherever they are."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(map(bytes_in, value))
    if isinstance(value, msgspec.Struct):
        return sum(bytes_in(getattr(value, name)) for name in value.__struct_fields__)
    return 0


def _within(seconds: float) -> int:
    return min(_LATEST, max(1, math.ceil(seconds)))
