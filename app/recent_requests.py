"""Which job a repeated request belongs to, so that a retry does not draw again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from app.domain.errors import KeyReused


class Attempt(msgspec.Struct, frozen=True):
    """How a request presents itself: whose it is, what it says (a digest), whether its client says
    that it is a retry, and the `Idempotency-Key` if it has one."""

    owner: str
    digest: str
    is_retry: bool = False
    key: str | None = None


class _Seen(msgspec.Struct):
    job_id: str
    digest: str
    when: float


class RecentRequests:
    """The newest `keep` requests of the last `seconds`, by owner and key or digest.

    OpenAI's SDKs send no key, but count their retries: an equal request of the same owner that says
    it is a retry belongs to the job of the first. One that does not say so is a wish of its own.
    """

    SECONDS = 3600.0

    def __init__(
        self,
        keep: int = 10_000,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._seconds = seconds
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str, str], _Seen] = OrderedDict()

    def find(self, attempt: Attempt) -> str | None:
        """The id of the job that this attempt repeats.

        Raises KeyReused: the key was used for another request.
        """
        if attempt.key is not None:
            seen = self._fresh((attempt.owner, "key", attempt.key))
            if seen is not None and seen.digest != attempt.digest:
                raise KeyReused(
                    "This Idempotency-Key was used for another request.", param="Idempotency-Key"
                )
            return seen.job_id if seen else None
        if attempt.is_retry:
            seen = self._fresh((attempt.owner, "digest", attempt.digest))
            return seen.job_id if seen else None
        return None

    def remember(self, attempt: Attempt, job_id: str, age: float = 0.0) -> None:
        """The request, which came `age` seconds ago, made this job."""
        seen = _Seen(job_id, attempt.digest, self._clock() - age)
        self._put((attempt.owner, "digest", attempt.digest), seen)
        if attempt.key is not None:
            self._put((attempt.owner, "key", attempt.key), seen)

    def _put(self, name: tuple[str, str, str], seen: _Seen) -> None:
        self._seen.pop(name, None)
        self._seen[name] = seen
        while len(self._seen) > self._keep:
            self._seen.popitem(last=False)

    def _fresh(self, name: tuple[str, str, str]) -> _Seen | None:
        seen = self._seen.get(name)
        return seen if seen and self._clock() - seen.when < self._seconds else None
