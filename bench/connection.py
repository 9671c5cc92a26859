"""One HTTP connection of the load generator: as little work for an answer as can be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

HOST = "127.0.0.1"
_BLOCK = 1 << 16


class Connection:
    """Kept alive between requests; opened when it is needed. Answers are read by blocks.

    Raises OSError or EOFError when the other side goes away.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._headers: dict[str, str] = {}

    async def send(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """Post `body`; the status and the headers of the answer, whose body is still to be read."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {HOST}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return int(lines[0].split()[1]), self._headers

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body as it comes; of a stream, each event in a block of its own or with others."""
        assert self._reader is not None
        if self._headers.get("transfer-encoding", "") == "chunked":
            while size := int(await self._reader.readline(), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
        else:
            left = int(self._headers.get("content-length", 0))
            while left:
                block = await self._reader.read(min(left, _BLOCK))
                if not block:
                    raise EOFError
                left -= len(block)
                yield block
        if self._headers.get("connection", "").lower() == "close":
            self.close()

    def close(self) -> None:
        """End the connection at once, whatever is under way on it."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.transport.abort()
        self._reader = self._writer = None
