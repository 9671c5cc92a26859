"""For Prometheus; and the counting of answers."""

from __future__ import annotations

import time

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api._schema import answers
from app.metrics import Metrics

_TEXT = {"text/plain": Schema(type=OpenAPIType.STRING, description="Prometheus' text format.")}


@get("/metrics", **answers(None, also=_TEXT, access="models"))
async def metrics(metrics: NamedDependency[Metrics]) -> Response[bytes]:
    """Counters, gauges and histograms of the whole server."""
    return Response(
        metrics.text(),
        media_type="text/plain; version=0.0.4; charset=utf-8",
        headers={"cache-control": "no-store"},
    )


class Counting(ASGIMiddleware):
    """Counts every answer of a route, and how long it took to begin."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        began = time.monotonic()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route, method = scope["path_template"], str(scope["method"])  # type: ignore[typeddict-item]
                seconds = time.monotonic() - began
                self._metrics.answered(route, method, message["status"], seconds)
            await send(message)

        await next_app(scope, receive, counted)


HANDLERS = [metrics]
