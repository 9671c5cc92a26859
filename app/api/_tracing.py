"""A span around every request."""

from __future__ import annotations

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.tracing import Tracing


class Traced(ASGIMiddleware):
    scopes = (ScopeType.HTTP,)

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        route, method = scope["path_template"], str(scope["method"])  # type: ignore[typeddict-item]
        with self._tracing.request(method, route, headers) as answered:

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answered(message["status"])
                await send(message)

            await next_app(scope, receive, told)
