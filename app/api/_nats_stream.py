"""What the NATS door does with JetStream: it takes submissions from a stream, and puts pictures into a
bucket that are too large for a message."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ObjectMeta,
    ObjectMetaOptions,
    RetentionPolicy,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from app.store.pictures import StoredImage

_log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that the broker gets to answer."""

_LINGER = 5.0
"""Seconds that it keeps a question for the next submission, when there is none."""

_ACK_WAIT = 30.0
"""Seconds after which it gives a submission to somebody else that nobody has spoken of."""

_WINDOW = 120.0
"""Seconds in which it takes a second submission of one `Nats-Msg-Id` for the first."""

_PAUSE = 1.0

_PIECE = 128 * 1024
"""Bytes of a message that carries a part of a picture."""

Take = Callable[[Msg], Awaitable[float | None]]
"""Takes a submission; None once that is for good, or the seconds after which it may come again."""


class Intake:
    """Takes submissions from `subject` in a work queue of name `stream`, one after the other.

    What you can rely on: a submission leaves the stream only when `take` has returned None for it.
    """

    def __init__(self, stream: str, subject: str, durable: str, take: Take) -> None:
        self._stream = stream
        self._subject = subject
        self._durable = durable
        self._take = take
        self._taking: asyncio.Task[None] | None = None

    def start(self, client: Client) -> None:
        self._taking = asyncio.create_task(self._run(client.jetstream(timeout=_PATIENCE)))

    async def stop(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
            self._taking = None

    async def _run(self, stream: JetStreamContext) -> None:
        told = ""
        while True:
            try:
                await self._take_all(stream)
            except (
                Exception
            ) as error:  # the broker may not be ready, or somebody removed the stream
                if told != type(error).__name__:
                    told = type(error).__name__
                    _log.warning("no submissions come from the NATS stream now (%s)", told)
            await asyncio.sleep(_PAUSE)

    async def _take_all(self, stream: JetStreamContext) -> None:
        await self._prepare(stream)
        waiting = await stream.pull_subscribe_bind(self._durable, stream=self._stream)
        while True:
            try:
                (message,) = await waiting.fetch(1, timeout=_LINGER)
            except TimeoutError:
                continue
            later = await self._take(message)
            if later is None:
                await message.ack()  # if that is lost, it comes again, and is known
            else:
                await message.nak(delay=later)

    async def _prepare(self, stream: JetStreamContext) -> None:
        """Make the stream and its consumer, where there are none; others' are taken as they are."""
        try:
            await stream.stream_info(self._stream)
        except NotFoundError:
            await stream.add_stream(
                StreamConfig(
                    name=self._stream,
                    subjects=[self._subject],
                    retention=RetentionPolicy.WORK_QUEUE,
                    duplicate_window=_WINDOW,
                )
            )
        try:
            await stream.consumer_info(self._stream, self._durable)
        except NotFoundError:
            await stream.add_consumer(
                self._stream,
                ConsumerConfig(
                    durable_name=self._durable,
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=_ACK_WAIT,
                    filter_subject=self._subject,
                ),
            )


def place_of(message: Msg) -> str:
    """What a submission is called that its client gave no name: the same at each delivery."""
    data = message.metadata
    return f"{data.stream}:{data.sequence.stream}:{data.timestamp.timestamp():.6f}"


class Bucket:
    """An object store of the broker; made where there is none, and then pictures go after `seconds`."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds

    async def put(self, client: Client, name: str, image: StoredImage) -> dict[str, Any] | None:
        """Where the picture is; None if it cannot be had there."""
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                stream = client.jetstream(timeout=_PATIENCE)
                try:
                    bucket = await stream.object_store(self._name)
                except NotFoundError:
                    with contextlib.suppress(BadRequestError):  # another server has just made it
                        await stream.create_object_store(self._name, ttl=self._seconds)
                    bucket = await stream.object_store(self._name)
                pieces = ObjectMetaOptions(max_chunk_size=min(_PIECE, client.max_payload))
                about = ObjectMeta(description=image.media_type, options=pieces)
                await bucket.put(name, image.data, meta=about)
        except (Error, OSError) as error:
            _log.warning("a picture is not in the NATS bucket (%s)", type(error).__name__)
            return None
        digest = hashlib.sha256(image.data).hexdigest()
        return {"bucket": self._name, "name": name, "sha256": digest}
