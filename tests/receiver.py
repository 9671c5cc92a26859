"""A client's server: takes webhooks on a real socket, notes them, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec


class Hook(msgspec.Struct):
    """One POST as it came in."""

    target: str
    headers: dict[str, str]
    body: bytes
    when: float

    @property
    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Answer(msgspec.Struct):
    """`after` seconds, the head; then `body`, over and over while `endless`."""

    status: int = 200
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    after: float = 0.0
    body: bytes = b"ok"
    endless: bool = False
    hang_up: bool = False


class Receiver:
    def __init__(self) -> None:
        self.hooks: list[Hook] = []
        self.answer: Callable[[Hook], Answer] = lambda _: Answer()
        self.port = 0
        self.at_once = 0
        self.most_at_once = 0
        self.sent = 0
        self.server_names: list[str | None] = []
        self._serving: set[asyncio.Task[Any] | None] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/hook?token=hush"

    def types(self) -> list[str]:
        return [hook.said["type"].removeprefix("job.") for hook in self.hooks]

    async def wait(self, count: int, seconds: float = 10.0) -> list[Hook]:
        async with asyncio.timeout(seconds):
            while len(self.hooks) < count:
                await asyncio.sleep(0.005)
        return self.hooks

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            hook = Hook(head[0].split(" ")[1], headers, body, time.monotonic())
            self.hooks.append(hook)
            await self._reply(writer, self.answer(hook))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._serving.discard(asyncio.current_task())
            self.at_once -= 1
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        await asyncio.sleep(answer.after)
        if answer.hang_up:
            return
        length = 1 << 40 if answer.endless else len(answer.body)
        headers = {"content-length": str(length), **answer.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {answer.status} Said\r\n{lines}\r\n".encode() + answer.body)
        await writer.drain()
        while answer.endless:
            writer.write(answer.body)
            self.sent += len(answer.body)
            await writer.drain()


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: receiver.server_names.append(name)
    server = await asyncio.start_server(receiver._serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in filter(None, receiver._serving.copy()):
            task.cancel()
