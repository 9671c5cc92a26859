"""Who is let in at a route: decided by the route's own `access`, which `answers` asks every one for.

A route without one lets nobody in. Where there are keys, everybody needs one, also on loopback.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from app.authentication import Authenticator
from app.domain.access import Access, Caller
from app.domain.errors import NotAllowed

_log = logging.getLogger(__name__)

Connection = ASGIConnection[Any, Any, Any, Any]

_CALLER, _RATE = "easel_caller", "easel_rate"


class Doorkeeper:
    """`check` is a guard of the whole application."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def check(self, connection: Connection, handler: BaseRouteHandler) -> None:
        """Raises NotAuthenticated, NotAllowed, RateLimited, StoreUnavailable."""
        access = cast("Access | None", handler.opt.get("access"))
        if access == "public" or _only_tells_methods(handler):
            return
        if access is None:
            _log.error("route %s does not say whom it lets in", handler)
            raise NotAllowed("Nobody may come in here.")
        if access == "link" and "signature" in connection.query_params:
            return  # the route checks it
        given = credential(connection.headers)
        caller = await self._authenticator.caller(given, access, user_of(connection))
        state = connection.scope["state"]
        state[_CALLER] = caller
        if handler.opt.get("counts"):
            state[_RATE] = self._authenticator.knock(caller)


def caller_of(connection: Connection) -> Caller:
    """Who was let in. A route that lets in anybody knows nobody."""
    return cast("Caller", connection.scope["state"][_CALLER])


def credential(headers: Headers) -> str:
    """The key that was sent: as Bearer, as password of Basic (the only way that some clients have), or
    as `x-api-key`; "" where there is none, or more than one. Never from the query: that is written down
    on the way."""
    sent = headers.getall("authorization", [])
    own = headers.getall("x-api-key", [])
    if len(sent) > 1 or len(own) > 1:
        return ""
    kind, _, value = (sent[0] if sent else "").strip().partition(" ")
    value = value.strip()
    if kind.lower() == "bearer" and value:
        return value
    if kind.lower() == "basic" and value:
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return ""
        return password or user
    return own[0].strip() if own else ""


def user_of(connection: Connection) -> str:
    """Whom a proxy says that it asks for; "" for nobody, and for several."""
    given = connection.headers.getall("x-openwebui-user-id", [])
    return given[0] if len(given) == 1 else ""


def _only_tells_methods(handler: BaseRouteHandler) -> bool:
    return isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}
