"""Addresses as clients put them together: a base URL with a slash too many is no reason to fail."""

from __future__ import annotations

import re

from litestar.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")


class TolerantPaths:
    """An ASGI application around another: `//v1//models` is served as `/v1/models`.

    It stands outside of the framework, which chooses the route before any middleware runs.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "//" in scope.get("path", ""):  # the lifespan has no path
            scope["path"] = _SLASHES.sub("/", scope["path"])
            scope["raw_path"] = _SLASHES.sub("/", scope["raw_path"].decode("latin-1")).encode(
                "latin-1"
            )
        await self._application(scope, receive, send)
