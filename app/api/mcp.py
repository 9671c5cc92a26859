"""`/mcp`: the Model Context Protocol, so that chat agents can draw. See docs/mcp.md.

The `mcp` package is large, and most servers are never asked: it is loaded when the first agent comes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler, asgi
from litestar.types import Message, Receive, Scope, Send

from app.authentication import Authenticator
from app.service import ImageService

if TYPE_CHECKING:
    from app.api._mcp import Sessions


class Agents:
    """All sessions of agents with one application."""

    def __init__(
        self, service: ImageService, authenticator: Authenticator, *, max_body: int
    ) -> None:
        self._service = service
        self._authenticator = authenticator
        self.max_body = max_body
        self._loading = asyncio.Lock()
        self._sessions: Sessions | None = None

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application. Raises MethodNotAllowedException."""
        if scope.get("method") not in ("POST", "DELETE"):  # there is no news that nobody asked for
            raise MethodNotAllowedException(headers={"allow": "POST, DELETE"})

        async def unbuffered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders(message)
                headers["x-accel-buffering"] = "no"
            await send(message)

        await (await self._open()).serve(scope, receive, unbuffered)

    async def _open(self) -> Sessions:
        async with self._loading:
            if self._sessions is None:
                kind = await asyncio.to_thread(_load)
                sessions = kind(self._service, self._authenticator, self.max_body)
                await sessions.open()
                self._sessions = sessions
        return self._sessions

    async def close(self) -> None:
        if self._sessions is not None:
            await self._sessions.close()


def _load() -> type[Sessions]:
    from app.api._mcp import Sessions

    return Sessions


def door(agents: Agents) -> ASGIRouteHandler:
    """The one route, for all that agents send."""

    told = {"access": "generate", "streams": True, "max_body": agents.max_body}

    @asgi("/mcp", copy_scope=True, opt=told)
    async def model_context_protocol(scope: Scope, receive: Receive, send: Send) -> None:
        await agents.serve(scope, receive, send)

    return model_context_protocol
