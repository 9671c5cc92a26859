"""The NATS door: the vision service's subjects on a broker that others run.

The broker is a way in and no record: a job counts once it is in the store, and a submission leaves its
stream only then. What clients may rely on is told in docs/nats.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from app.api._door import CannotOpen
from app.api._jobs import events_of, shown
from app.api._nats_herald import Herald, Inbox
from app.api._nats_link import Broker, Link
from app.api._nats_stream import Bucket, Intake, place_of
from app.api._nats_words import (
    credential_in,
    error_told,
    key_of,
    name_in,
    progress_told,
    read_body,
    refusal_told,
    wants_progress,
)
from app.api._owner import visible_job
from app.api._vision import Desk, model_told
from app.attendance import FOREVER
from app.authentication import Authenticator
from app.domain.access import Access, Caller
from app.domain.errors import EaselError, KeyReused, NotFound, QueueFull, Unavailable
from app.domain.job import Job
from app.recent_requests import Attempt
from app.service import ImageService

_log = logging.getLogger(__name__)
_requests = logging.getLogger("app.requests")

_MOST = 1000
"""Requests that are answered or waited for at once; jobs are fewer, as the queue has an end."""

_UNSEEN, _UNSEEN_BYTES = 65_536, 64_000_000
"""Messages that came in one go and were not looked at yet, and their bytes; more are lost. To say no is
quick, so they are many more than may wait for an answer."""

_SOON = 5
"""Seconds after which there may be room for another request."""

_LAST_ANSWERS = 2.0
"""Seconds that answers get to be sent when the server ends."""

_AFTER_OTHERS = 0.5
"""Seconds before it is said that there is no such job: another server may have it."""


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """See config/easel.toml. Links begin with `address`; pictures are in a bucket for `keep_seconds`;
    where `keyless`, nobody needs a key until there is one."""

    prefix: str
    group: str
    stream: str
    bucket: str
    address: str
    keep_seconds: float
    max_body: int
    log_requests: bool
    keyless: bool


class _Entry:
    """One request, for the log."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.began = time.monotonic()
        self.caller: Caller | None = None
        self.job: Job | None = None


_Work = Callable[[Msg, _Entry], Coroutine[Any, Any, EaselError | None]]
"""Serves a message; tells what was answered, if nothing good."""


class NatsDoor:
    """`needed` tells whether there are keys, so that everybody needs one."""

    def __init__(
        self,
        service: ImageService,
        desk: Desk,
        authenticator: Authenticator,
        needed: Callable[[], Awaitable[bool]],
        broker: Broker,
        settings: NatsSettings,
    ) -> None:
        self._service = service
        self._desk = desk
        self._authenticator = authenticator
        self._needed = needed
        self._settings = settings
        self._link = Link(broker, self._welcome, self._farewell)
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._intake: Intake | None = None
        if settings.stream:
            subject, stream = self._subject("submit"), settings.stream
            self._intake = Intake(stream, subject, settings.group, self._submission)
        bucket = Bucket(settings.bucket, settings.keep_seconds) if settings.bucket else None
        self._herald = Herald(service, self._link, bucket, settings.prefix, settings.address)

    async def open(self) -> None:
        """Raises CannotOpen. That the broker is not there is no reason."""
        if not self._settings.keyless and not await self._needed():
            raise CannotOpen(
                "nats_url leads to a broker that other machines can reach, and there is no key. Make "
                "one with `easel keys create NAME`; or use a broker on 127.0.0.1; or, if the broker "
                "asks everybody who they are, and lets nobody else speak to this server, say "
                "proxy_authenticates = true."
            )
        self._link.open()
        for job in self._service.going_on("nats"):  # left by an earlier life of the server
            self._herald.watch(job, fresh=False)

    async def close(self) -> None:
        if self._intake is not None:
            await self._intake.stop()
        with contextlib.suppress(Exception):  # the broker may be gone
            async with asyncio.timeout(_LAST_ANSWERS):
                await asyncio.gather(*map(_drained, self._subscriptions))
        await self._herald.close(_LAST_ANSWERS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_ANSWERS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    def _subject(self, *words: str) -> str:
        return ".".join((self._settings.prefix, *words))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the link ----------------------------------------------------------------------------------

    async def _welcome(self, client: Client) -> None:
        shared = self._settings.group
        self._subscriptions = [
            await self._listen(client, "request", shared, self._request),
            await self._listen(client, "model_info", shared, self._model_info),
            await self._listen(client, "cancel.*", "", self._cancel),
            await self._listen(client, "watch.*", "", self._watch),
        ]
        if self._intake is not None:
            self._intake.start(client)

    async def _farewell(self) -> None:
        self._subscriptions = []
        if self._intake is not None:
            await self._intake.stop()

    async def _listen(
        self,
        client: Client,
        word: str,
        group: str,
        work: _Work,
    ) -> Subscription:
        kind = word.partition(".")[0]

        async def heard(message: Msg) -> None:
            if len(self._tasks) < _MOST:
                self._spawn(self._serve(work, message, _Entry(kind)))
            elif message.reply:
                full = QueueFull("As many requests wait as may.", retry_after=_SOON)
                await self._link.tell(message.reply, msgspec.json.encode(error_told(full)))

        return await client.subscribe(
            self._subject(word),
            queue=group,
            cb=heard,
            pending_msgs_limit=_UNSEEN,
            pending_bytes_limit=_UNSEEN_BYTES,
        )

    async def _serve(
        self,
        work: _Work,
        message: Msg,
        entry: _Entry,
    ) -> None:
        """Do it; whatever goes wrong is told to who waits, or else to all who listen."""
        try:
            error = await work(message, entry)
        except Exception as failed:
            error = self._told_of(failed)
            await self._refuse(message, error)
        self._note(entry, error)

    async def _refuse(self, message: Msg, error: EaselError) -> None:
        if message.reply:
            await self._herald.answer(message.reply, error_told(error))
        elif message.subject == self._subject("request"):
            await self._refused(message, error)

    async def _refused(self, message: Msg, error: EaselError) -> None:
        """Somebody who waits for no answer may listen for results."""
        with contextlib.suppress(EaselError):
            told = refusal_told(name_in(message), error)
            await self._herald.publish("result", told)

    def _told_of(self, error: Exception) -> EaselError:
        """What a client is told of it."""
        if isinstance(error, EaselError):
            return error
        _log.error("a request that came by NATS failed", exc_info=error)
        return EaselError("The server made a mistake. Its log tells more.")

    def _note(self, entry: _Entry, error: EaselError | None) -> None:
        if not self._settings.log_requests:
            return
        told: dict[str, Any] = {
            "door": "nats",
            "subject": entry.kind,
            "outcome": error.code if error else "ok",
            "seconds": round(time.monotonic() - entry.began, 4),
        }
        if entry.job is not None:
            told["job"] = entry.job.id
        if entry.caller is not None and entry.caller.key:
            told["key"] = entry.caller.key
        _requests.info("request", extra=told)

    # -- requests ----------------------------------------------------------------------------------

    async def _let_in(self, message: Msg, access: Access, entry: _Entry) -> Caller:
        """Raises NotAuthenticated, NotAllowed, StoreUnavailable."""
        entry.caller = await self._authenticator.caller(credential_in(message), access)
        return entry.caller

    async def _take(
        self, message: Msg, entry: _Entry, *, carried_as: str | None = None
    ) -> tuple[Job, bool]:
        """The job of a request, and whether it was known. One that a stream carries has a name there,
        and may be delivered again.

        Raises RateLimited, KeyReused, and what `submit` and `_let_in` raise.
        """
        caller = await self._let_in(message, "generate", entry)
        self._authenticator.knock(caller)
        name = name_in(message) or carried_as
        body, digest = read_body(message.data, self._settings.max_body)
        try:
            entry.job, known = await self._service.submit_once(
                Attempt(caller.owner, f"nats {digest}", key=key_of(name)),
                body.arguments_at(self._desk),
                door="nats",
                grace=FOREVER,
                whatever_became=carried_as is not None,
            )
        except KeyReused as error:
            text = "This Nats-Msg-Id was used for another request."
            raise KeyReused(text, param="Nats-Msg-Id") from error
        return entry.job, known

    async def _request(self, message: Msg, entry: _Entry) -> EaselError | None:
        job, known = await self._take(message, entry)
        if not message.reply:
            self._herald.watch(job, fresh=not known)
            return None
        message.data = b""  # it may be large, and the answer far away
        inbox = Inbox(message.reply, progress=wants_progress(message))
        self._herald.watch(job, inbox, fresh=not known)
        return await inbox.answered

    async def _submission(self, message: Msg) -> float | None:
        """The seconds after which it may come again; None when it need not."""
        entry = _Entry("submit")
        error: EaselError | None = None
        try:
            job, known = await self._take(message, entry, carried_as=place_of(message))
            self._herald.watch(job, fresh=not known)
        except Unavailable as busy:
            return float(busy.retry_after)
        except Exception as failed:
            error = self._told_of(failed)
            await self._refused(message, error)
        self._note(entry, error)
        return None

    async def _model_info(self, message: Msg, entry: _Entry) -> EaselError | None:
        await self._let_in(message, "any", entry)
        if message.reply:
            await self._herald.answer(message.reply, model_told(self._desk))
        return None

    async def _cancel(self, message: Msg, entry: _Entry) -> EaselError | None:
        job = await self._named(message, entry)
        entry.job = job = await self._service.cancel(job.id)
        if message.reply:
            await self._herald.answer(message.reply, shown(job))
        return None

    async def _watch(self, message: Msg, entry: _Entry) -> EaselError | None:
        """All events to the inbox; whether anybody is there to hear them, nobody can see."""
        entry.job = job = await self._named(message, entry)
        if message.reply:
            async for numbered in events_of(self._service, job):
                await self._link.tell(message.reply, progress_told(job, numbered))
        return None

    async def _named(self, message: Msg, entry: _Entry) -> Job:
        """The job that the subject names. Raises NotFound, and what `_let_in` raises."""
        caller = await self._let_in(message, "generate", entry)
        try:
            return await visible_job(self._service, caller, message.subject.rpartition(".")[2])
        except NotFound:
            await asyncio.sleep(_AFTER_OTHERS)
            raise


async def _drained(subscription: Subscription) -> None:
    """Take no more, once what has come is taken."""
    await subscription.drain()  # type: ignore[no-untyped-call]
