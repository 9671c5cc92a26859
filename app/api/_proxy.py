"""What a reverse proxy has to know of the routes: which of them stream, and how large bodies may be.

It is read off the application itself, so that no route is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from litestar import Litestar
from litestar.handlers import WebsocketRouteHandler
from litestar.routes import ASGIRoute, HTTPRoute, WebSocketRoute

_HEAD = """\
# Written by `easel nginx`, of the routes that this version has. Do not edit: a change of `max_body` or
# `max_upload` in easel.toml wants it written anew.
"""


def nginx_routes(app: Litestar) -> str:
    """Locations for nginx, of all routes that stream or take more than the usual body."""
    usual, streams = app.request_max_body_size, frozenset(_streams(app))
    blocks = []
    for path, largest in sorted(_largest_bodies(app).items()):
        lines = ["    include easel/stream.conf;"] if path in streams else []
        if largest not in (0, usual):
            lines.append(f"    client_max_body_size {largest};")
        if lines:
            if path not in streams:
                lines.insert(0, "    proxy_pass http://easel;")
            blocks.append(f"location {_matcher(path)} {{\n" + "\n".join(lines) + "\n}\n")
    return "\n".join([_HEAD, *blocks])


def _streams(app: Litestar) -> Iterator[str]:
    """Paths that may answer with events, or are WebSockets."""
    for path, item in (app.openapi_schema.paths or {}).items():
        for operation in (item.get, item.post):
            answers = (operation.responses if operation else None) or {}
            if any("text/event-stream" in (one.content or {}) for one in answers.values()):  # type: ignore[union-attr]
                yield path
    for route in app.routes:
        mounted = isinstance(route, ASGIRoute) and route.route_handler.opt.get("streams")
        if isinstance(route, WebSocketRoute) or mounted:
            yield route.path_format


def _largest_bodies(app: Litestar) -> dict[str, int]:
    """Bytes that may be sent to a path."""
    largest: dict[str, int] = {}
    for route in app.routes:
        handlers = route.route_handlers if isinstance(route, HTTPRoute) else []
        sizes = [
            handler.resolve_request_max_body_size()
            for handler in handlers
            if not isinstance(handler, WebsocketRouteHandler)
        ]
        if isinstance(route, ASGIRoute):
            sizes = [route.route_handler.opt.get("max_body")]
        found = [size for size in sizes if isinstance(size, int)]
        largest[route.path_format] = max([*found, largest.get(route.path_format, 0)])
    return largest


def _matcher(path: str) -> str:
    if "{" not in path:
        return f"= {path}"
    parts = [
        "[^/]+" if part.startswith("{") else re.escape(part) for part in path.strip("/").split("/")
    ]
    return f"~ ^/{'/'.join(parts)}$"
