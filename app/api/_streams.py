"""Answers that are sent piece by piece: event streams, and others that take long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Send

from app.api._http import end, hang_up


def sse(event: str, data: object, id: int | None = None) -> bytes:
    """One frame. `id` is left out on OpenAI's streams: their Python SDK breaks on comments after it."""
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class LongAnswer(Response[bytes]):
    """An answer that is sent piece by piece, and is sure to be cleaned up.

    `pieces` are sent as they come, and `heartbeat` whenever none comes for `interval` seconds. However
    it ends (all sent, client gone, task cancelled while sending), the generator is closed and then
    `on_close` awaited. Litestar's own `Stream` leaves a generator that is blocked in `send` to the
    garbage collector, where a job would go on drawing for nobody.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        heartbeat: bytes,
        interval: float,
        on_close: Callable[[], Awaitable[object]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(b"")
        self._sending = _Sending(
            headers={**_NOT_BUFFERED, **(headers or {})}, media_type=media_type
        )
        self._sending.pieces = pieces
        self._sending.heartbeat, self._sending.interval = heartbeat, interval
        self._sending.on_close = [pieces.aclose]
        if on_close is not None:
            self._sending.on_close.append(on_close)

    def to_asgi_response(
        self, app: Litestar | None, request: Request[Any, Any, Any], **_: Any
    ) -> ASGIResponse:
        return self._sending


_NOT_BUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(LongAnswer):
    """A `text/event-stream`, with comments as heartbeat. See `LongAnswer`."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        heartbeat: float,
        on_close: Callable[[], Awaitable[object]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            frames,
            media_type="text/event-stream",
            heartbeat=b": heartbeat\n\n",
            interval=heartbeat,
            on_close=on_close,
            headers=headers,
        )


class _Sending(ASGIResponse):
    _should_set_content_length = False
    pieces: AsyncGenerator[bytes, None]
    heartbeat: bytes
    interval: float
    on_close: list[Callable[[], Awaitable[object]]]

    async def send_body(self, send: Send, receive: Receive) -> None:
        pulse = _Pulse(send, self.heartbeat, self.interval)
        sending = asyncio.create_task(self._send_all(pulse))
        left = asyncio.create_task(hang_up(receive))
        try:
            await asyncio.wait({sending, left}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            pulse.stop()
            await end(sending, left)
            for close in self.on_close:
                await close()

    async def _send_all(self, pulse: _Pulse) -> None:
        async for piece in self.pieces:
            await pulse.send(piece)
        pulse.stop()
        await pulse.send(b"", last=True)


class _Pulse:
    """Sends pieces, and a heartbeat for every `interval` seconds in which there is none.

    A timer looks now and then whether one is due, so that a piece costs no task and no timer of its
    own. A server takes each piece whole, so that a heartbeat is never in the middle of one.
    """

    def __init__(self, send: Send, heartbeat: bytes, interval: float) -> None:
        self._send = send
        self._heartbeat = heartbeat
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._busy = False
        self._beating: asyncio.Task[None] | None = None
        self._timer = self._loop.call_at(self._last + interval, self._look)

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        self._busy = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
        self._busy = False
        self._last = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _look(self) -> None:
        due = self._last + self._interval
        if self._busy:  # the reader is slow; more to read is no help
            due = self._loop.time() + self._interval
        elif self._loop.time() >= due:
            self._beating = self._loop.create_task(self.send(self._heartbeat))
            due = self._loop.time() + self._interval
        self._timer = self._loop.call_at(due, self._look)
