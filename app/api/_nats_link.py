"""A connection to a NATS broker that is made anew for as long as the server runs.

What you can rely on: the server starts and runs without the broker; a link that is lost, refused or
dead is made again, after pauses of up to five seconds; what is to be delivered waits for it.

The library's own way of reconnecting is turned off: it gives up for ever after some errors of the
broker's (nats-py 2.16), and this loop is needed for the first connection anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from nats.aio.client import Client
from nats.errors import (
    AuthorizationError,
    BadSubjectError,
    Error,
    MaxPayloadError,
    SlowConsumerError,
)

from app.api._door import CannotOpen

_log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that the broker gets for an answer of its own."""

_PING = 5
"""Seconds between two questions whether it is still there; after two without an answer it is not. The
library's two minutes would hide a dead link for as long."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_LOOK = 0.5
"""Seconds between two looks at whether the link stands: the library tells of its end only once it has
sent what was left, which on a dead link takes as long as it likes."""

_UNANSWERED = 2

_RETURN = 60.0
"""Seconds after the broker came back in which clients should be back as well."""

_GOODBYE = 2.0
"""Seconds that a connection gets to be closed in peace."""


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers of one broker are (`nats://` or `tls://`), and what they are shown."""

    servers: tuple[str, ...]
    ca_file: Path | None = None
    creds_file: Path | None = None
    nkey_file: Path | None = None


class NotEncrypted(Error):
    """The broker offers no TLS, and was to be spoken to with it."""


class _Client(Client):
    """Speaks no further with a broker that has no TLS, where that was asked for: otherwise whoever is
    in between could take the word out of its greeting, and be sent the credentials."""

    encrypted = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.encrypted and not info.get("tls_required"):
            raise NotEncrypted
        await super()._process_info(info, initial_connection)


class Link:
    """`welcome` is called with each new connection, to subscribe on it, `farewell` after its end."""

    def __init__(
        self,
        broker: Broker,
        welcome: Callable[[Client], Awaitable[None]],
        farewell: Callable[[], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._welcome = welcome
        self._farewell = farewell
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None
        self._last: Exception | None = None
        self._late = 0.0
        self._told: set[str] = set()

    def open(self) -> None:
        """Begin to connect. Raises CannotOpen."""
        self._tls = self._context()
        _check(self._broker)
        self._keeping = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        """Send what was written, and leave."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    @property
    def client(self) -> Client | None:
        """The connection, while there is one."""
        return self._client

    async def tell(self, subject: str, payload: bytes) -> None:
        """Publish; nobody hears it while there is no link, or where it is too large."""
        if self._client is not None:
            with contextlib.suppress(Error, OSError):
                await self._client.publish(subject, payload)

    async def deliver(self, subject: str, payload: bytes) -> None:
        """Publish, and return once the broker has it: at least once, however often it goes away.

        Raises MaxPayloadError, BadSubjectError.
        """
        await self._insist(lambda client: _publish(client, subject, payload))

    async def answer(self, inbox: str, payload: bytes) -> None:
        """The same, to who has asked: after the broker was away, he is waited for until he is back.

        Raises MaxPayloadError, BadSubjectError.
        """

        async def once(client: Client) -> bool:
            heard = await _publish(client, inbox, payload, asks=True)
            return heard or time.monotonic() > self._late

        await self._insist(once)

    async def _insist(self, work: Callable[[Client], Awaitable[bool]]) -> None:
        while True:
            await self._up.wait()
            client = self._client
            try:
                if client is not None and await work(client):
                    return
            except (MaxPayloadError, BadSubjectError):
                raise
            except (Error, OSError):  # the link is lost, or will be found to be
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the library took that for the loss
                    raise asyncio.CancelledError from None
            await asyncio.sleep(_FIRST_PAUSE)

    # -- the loop ----------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            client, ended = _Client(), asyncio.Event()
            try:
                await self._connect(client, ended)
                pause = _FIRST_PAUSE
                self._late = time.monotonic() + _RETURN
                self._client = client
                self._up.set()
                async with asyncio.timeout(_PATIENCE):
                    await self._welcome(client)
                    await client.flush(int(_PATIENCE))
                _log.info("the NATS door is open")
                while client.is_connected:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), _LOOK)
                self._told.clear()
                _log.warning("the NATS broker is gone; the door waits for it")
            except Exception as error:  # whatever was wrong may be right the next time
                self._warn(_why(self._last or error))
            finally:
                self._client = None
                self._up.clear()
                await self._farewell()
                await _end(client)
            await asyncio.sleep(pause * random.uniform(0.7, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _connect(self, client: _Client, ended: asyncio.Event) -> None:
        async def closed() -> None:
            ended.set()

        self._last = None
        broker = self._broker
        user, password, token = _user_in(broker.servers)
        client.encrypted = any(url.startswith("tls:") for url in broker.servers)
        async with asyncio.timeout(_PATIENCE * (len(broker.servers) + 1)):
            await client.connect(
                [_without_user(url) for url in broker.servers],
                user=user,
                password=password,
                token=token,
                name="easel",
                error_cb=self._note,
                closed_cb=closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=int(_PATIENCE),
                flush_timeout=_PATIENCE,
                ping_interval=_PING,
                max_outstanding_pings=_UNANSWERED,
                tls=self._tls,
                user_credentials=broker.creds_file,
                nkeys_seed=str(broker.nkey_file) if broker.nkey_file else None,
            )

    def _context(self) -> ssl.SSLContext | None:
        """Raises CannotOpen."""
        file = self._broker.ca_file
        if file is None and not any(url.startswith("tls:") for url in self._broker.servers):
            return None
        try:
            return ssl.create_default_context(cafile=file)
        except OSError as error:
            raise CannotOpen("nats_ca_file cannot be read as certificates.") from error

    async def _note(self, error: Exception) -> None:
        """What the library tells beside its exceptions."""
        if isinstance(error, SlowConsumerError):
            self._warn("more messages came than could be taken in, and some are lost")
        elif "permissions violation" in str(error).lower():
            self._warn("it does not permit this server something that the door needs")
        else:
            self._last = error  # the loop tells it, where no connection comes of it

    def _warn(self, why: str) -> None:
        """Once, until something has changed."""
        if why not in self._told:
            self._told.add(why)
            _log.warning("the NATS broker: %s", why)


def _check(broker: Broker) -> None:
    """Whether the files can be used. Raises CannotOpen."""
    import nkeys

    if broker.nkey_file is not None:
        try:
            nkeys.from_seed(bytearray(broker.nkey_file.read_bytes().strip())).wipe()
        except Exception as error:  # whatever its parser stumbles over
            raise CannotOpen("nats_nkey_file cannot be read as the seed of an nkey.") from error
    if broker.creds_file is not None:
        try:
            text = broker.creds_file.read_text("ascii")
        except (OSError, ValueError) as error:
            raise CannotOpen("nats_creds_file cannot be read.") from error
        if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
            raise CannotOpen("nats_creds_file holds no JWT with its seed.")


def _user_in(servers: Iterable[str]) -> tuple[str | None, str | None, str | None]:
    """User, password and token of the first address that has them, with percent signs undone, which the
    library does not do."""
    for url in servers:
        found = urlsplit(url)
        user, password = unquote(found.username or ""), found.password
        if password is not None:
            return user, unquote(password), None
        if user:
            return None, None, user
    return None, None, None


def _without_user(url: str) -> str:
    found = urlsplit(url)
    return found._replace(netloc=found.netloc.rpartition("@")[2]).geturl()


def _why(error: Exception) -> str:
    """In our words: a foreign text may quote credentials."""
    text = str(error).lower()
    if isinstance(error, NotEncrypted):
        return "it offers no TLS, and nats_url asks for it"
    if isinstance(error, ssl.SSLError):
        return "its certificate cannot be verified, or it speaks no TLS that is good here"
    if isinstance(error, AuthorizationError) or "authorization" in text or "authentication" in text:
        return "it refuses the credentials of this server"
    if isinstance(error, OSError | Error):  # a TimeoutError is an OSError
        return "it cannot be reached; the door waits for it"
    return f"no connection was made ({type(error).__name__})"


async def _publish(client: Client, subject: str, payload: bytes, *, asks: bool = False) -> bool:
    """Return once the broker has it: False where it `asks` for it to be heard, and nobody did.

    Behind the message goes a mark to an inbox of ours, where the broker says before if nobody heard.
    The library's `flush` would not do: it returns without an answer once its reader has ended
    (nats-py 2.16).
    """
    told = client.new_inbox()
    listening = await client.subscribe(told)
    try:
        await client.publish(subject, payload, reply=told if asks else "")
        await client.publish(told)
        answer = await listening.next_msg(timeout=_PATIENCE)
        return (answer.headers or {}).get("Status") != "503"
    finally:
        with contextlib.suppress(Error):
            await listening.unsubscribe()


async def _end(client: Client) -> None:
    """Close, however it stands; a dead link is left to itself."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_GOODBYE):
            await client.close()
