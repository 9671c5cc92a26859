"""What is still to be told of each job, in its order, and the trying until it is told.

What you can rely on: of one job, one delivery is under way at a time; `created` comes before
`started`, nothing comes after `finished`. A newer progress replaces one that still waits, at most one
goes out per interval, and none is tried twice. Everything else is tried again until the receiver
answers, refuses, or the attempts are spent, under the same id. A host that is slow or dead holds only
its own deliveries. When too much waits, new webhooks are refused at the door and lesser news are
dropped, but never a `finished` while the process lives; the next process is to tell those that were not
`settled`, and does it under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal
from weakref import WeakValueDictionary

import msgspec
from ulid import ULID

from app.domain.errors import EaselError, InvalidRequest, QueueFull
from app.domain.events import TERMINAL, ImageReady, NumberedEvent, Progressed, Started
from app.webhooks.addresses import Resolve
from app.webhooks.allow_list import AllowList, Target
from app.webhooks.courier import Courier, Outcome
from app.webhooks.policy import WebhookPolicy

_log = logging.getLogger(__name__)

Kind = Literal["created", "started", "progress", "finished"]

_TASK_BYTES = 8192
"""What a waiting delivery costs beside its body, roughly."""


def kind_of(numbered: NumberedEvent) -> Kind | None:
    """What a job's event is called in a webhook; None when none is sent for it."""
    event = numbered.event
    if isinstance(event, TERMINAL):
        return "finished"
    if isinstance(event, Started):
        return "started"
    if isinstance(event, Progressed | ImageReady):
        return "progress"
    return "created" if numbered.number == 1 else None


class _Delivery(msgspec.Struct):
    id: str
    kind: Kind
    body: bytes
    attempts: int = 0

    @property
    def weight(self) -> int:
        return len(self.body) + _TASK_BYTES


class _Line(msgspec.Struct):
    """The deliveries of one job. Times are the event loop's."""

    job_id: str
    target: Target
    host_slots: asyncio.Semaphore
    waiting: dict[Kind, _Delivery] = msgspec.field(default_factory=dict)
    current: _Delivery | None = None
    try_at: float = 0.0
    progress_at: float = 0.0
    news: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    @property
    def finished(self) -> bool:
        return "finished" in self.waiting or bool(self.current and self.current.kind == "finished")

    def pause(self, now: float) -> float | None:
        """Seconds until something can be sent or forgotten; None when all is done."""
        if self.current is not None:
            return max(0.0, self.try_at - now)
        if next(iter(self.waiting), "progress") != "progress":
            return 0.0
        if not self.waiting and now >= self.progress_at:
            return None
        return max(0.0, self.progress_at - now)

    def take(self, now: float, interval: float) -> _Delivery | None:
        if self.current is None and self.waiting:
            self.current = self.waiting.pop(next(iter(self.waiting)))
            if self.current.kind == "progress":
                self.progress_at = now + interval
        return self.current


class Webhooks:
    """`clock` gives Unix seconds. `settled` is told of jobs whose `finished` was answered or given up.
    Use it from the event loop's thread."""

    def __init__(
        self,
        policy: WebhookPolicy,
        clock: Callable[[], float] = time.time,
        *,
        settled: Callable[[str], Awaitable[None]] | None = None,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._settled = settled
        self._clock = clock
        self._allowed = AllowList(policy.hosts)
        self._courier = Courier(policy, clock, resolve, tls)
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(policy.at_once)
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._held: Counter[str] = Counter()
        self._closed = False

    def check(self, url: str) -> None:
        """Whether a job may come with this webhook.

        Raises:
            InvalidRequest: it may not; the message says why.
            QueueFull: not now, too much is waiting to be delivered.
        """
        target = self._allowed.read(url)
        if not self._has_room(target.host, 4 * _TASK_BYTES):
            raise QueueFull("Too many webhooks wait to be delivered.", retry_after=30)

    def tell(self, job_id: str, url: str, kind: Kind, shown: Mapping[str, Any]) -> None:
        """Send `shown`, as it is now, some time soon. Never blocks, never raises.

        The caller tells of `finished` once, and of nothing after it.
        """
        try:
            self._tell(job_id, url, kind, shown)
        except InvalidRequest as error:
            _log.warning("webhook of job %s is not sent: %s", job_id, error.message)
        # Whatever is wrong with a webhook, its job goes on. The error itself might quote the URL.
        except Exception as error:
            _log.error("webhook of job %s is not sent: %s", job_id, type(error).__name__)

    def _tell(self, job_id: str, url: str, kind: Kind, shown: Mapping[str, Any]) -> None:
        line = self._lines.get(job_id)
        if self._closed or (line is not None and line.finished):
            return
        target = line.target if line else self._allowed.read(url)
        delivery_id = f"{job_id}-finished" if kind == "finished" else str(ULID())
        body = msgspec.json.encode(
            {"id": delivery_id, "type": f"job.{kind}", "created": self._clock(), "job": shown}
        )
        delivery = _Delivery(delivery_id, kind, body)
        if kind != "finished" and not self._has_room(target.host, delivery.weight):
            _log.warning("webhook job.%s of job %s to %s: no room", kind, job_id, target.host)
            return
        if line is None:
            line = self._open(job_id, target)
        self._drop(line, kind)
        if kind == "finished":
            self._drop(line, "progress")
        line.waiting[kind] = delivery
        self._held[target.host] += delivery.weight
        line.news.set()

    def _open(self, job_id: str, target: Target) -> _Line:
        slots = self._host_slots.get(target.host) or asyncio.Semaphore(self._policy.per_host)
        self._host_slots[target.host] = slots
        line = _Line(job_id, target, slots)
        task = asyncio.create_task(self._serve(line))
        self._lines[job_id] = line
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return line

    # -- room --------------------------------------------------------------------------------------

    def _has_room(self, host: str, more: int) -> bool:
        room = self._policy.room
        return self._held[host] + more < room // 4 and self._held.total() + more < room

    def _drop(self, line: _Line, kind: Kind) -> None:
        if delivery := line.waiting.pop(kind, None):
            self._free(line, delivery)

    def _free(self, line: _Line, delivery: _Delivery) -> None:
        host = line.target.host
        self._held[host] -= delivery.weight
        if not self._held[host]:
            del self._held[host]

    # -- sending -----------------------------------------------------------------------------------

    async def _serve(self, line: _Line) -> None:
        """Send what the line holds until there is nothing left."""
        now = asyncio.get_running_loop().time
        try:
            while (pause := line.pause(now())) is not None:
                if pause:
                    line.news.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await line.news.wait()
                    continue
                async with line.host_slots, self._slots:
                    if (delivery := line.take(now(), self._policy.interval)) is None:
                        continue
                    outcome = await self._attempt(line, delivery)
                if not self._again(line, delivery, outcome, now()):
                    await self._settle(line, delivery, outcome)
        finally:
            self._lines.pop(line.job_id, None)
            for delivery in (*line.waiting.values(), *filter(None, [line.current])):
                self._free(line, delivery)

    async def _attempt(self, line: _Line, delivery: _Delivery) -> Outcome:
        delivery.attempts += 1
        try:
            return await self._courier.deliver(line.target, delivery.id, delivery.body)
        # One delivery that cannot be made must not take the later ones of its job with it.
        except Exception as error:
            return Outcome(type(error).__name__, again=True)

    def _again(self, line: _Line, delivery: _Delivery, outcome: Outcome, now: float) -> bool:
        """Whether it is to be tried once more; then it is known when."""
        backoff = self._policy.backoff
        spent = delivery.kind == "progress" or delivery.attempts > len(backoff)
        if spent or not outcome.again:
            return False
        wait = backoff[delivery.attempts - 1] * random.uniform(0.75, 1.25)
        line.try_at = now + max(wait, outcome.wait)
        return True

    async def _settle(self, line: _Line, delivery: _Delivery, outcome: Outcome) -> None:
        if delivery.kind == "finished" and self._settled is not None:
            try:
                await self._settled(line.job_id)
            except EaselError as error:  # it will be told once more, under the same id
                _log.warning("webhook of job %s is not settled: %s", line.job_id, error.code)
        line.current = None
        self._free(line, delivery)
        if outcome.why:
            _log.log(
                logging.INFO if delivery.kind == "progress" else logging.WARNING,
                "webhook job.%s of job %s to %s is given up after %d: %s",
                *(delivery.kind, line.job_id, line.target.host, delivery.attempts, outcome.why),
            )

    async def close(self, drain_s: float) -> None:
        """Try what waits for a retry once more, now; give up on what is left after `drain_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        for line in self._lines.values():
            line.try_at = 0.0
            line.news.set()
        while any(line.waiting or line.current for line in self._lines.values()):
            if (left := deadline - loop.time()) <= 0:
                break
            await asyncio.sleep(min(left, 0.05))
        self._closed = True
        lost = sum(len(line.waiting) + bool(line.current) for line in self._lines.values())
        if lost:
            _log.warning("%d webhooks were not delivered before the end", lost)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._courier.close()
