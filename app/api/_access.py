"""Who is let in at a route: decided by the route's own `access`, which `answers` asks every one for.

A route without one lets nobody in. Where there are keys, everybody needs one, also on loopback.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from app.domain.access import LOCAL, SCOPES, Access, Caller
from app.domain.errors import NotAllowed, NotAuthenticated
from app.reception import Reception
from app.store.keys import KeyRing
from app.store.links import Links

_log = logging.getLogger(__name__)

Connection = ASGIConnection[Any, Any, Any, Any]

_CALLER, _RATE = "easel_caller", "easel_rate"
_USER = re.compile(r"[A-Za-z0-9_.@-]{1,128}")

_MISSING = "This server needs a key. Send it as Authorization: Bearer."
_WRONG = "This key is not good here."


class Doorkeeper:
    """`check` is a guard of the whole application. Where `keyless`, nobody needs a key until there is
    one; `trust_user_header` says whether a proxy may name the user that it asks for."""

    def __init__(
        self,
        keys: KeyRing,
        links: Links,
        reception: Reception,
        *,
        keyless: bool,
        trust_user_header: bool,
    ) -> None:
        self._keys = keys
        self._links = links
        self._reception = reception
        self._keyless = keyless
        self._trust = trust_user_header

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
        caller = await self._caller(connection, access)
        if not caller.may(access):
            raise NotAllowed(f"This key may not do this: it needs the scope {_scope(access)}.")
        state = connection.scope["state"]
        state[_CALLER] = caller
        if handler.opt.get("counts"):
            state[_RATE] = self._reception.knock(caller.owner)

    async def _caller(self, connection: Connection, access: Access) -> Caller:
        """Who asks. Raises NotAuthenticated."""
        given = credential(connection.headers)
        if self._links.is_local_pass(given):
            return Caller(LOCAL, frozenset(SCOPES), everyone=True)
        if not await self._keys.needed() and self._keyless and access != "keys":
            return keyless(connection, self._trust)
        key = await self._keys.find(given)
        if key is None:
            raise NotAuthenticated(_WRONG if given else _MISSING)
        user = _user_of(connection) if self._trust else ""
        owner = f"{key.owner}/{user}" if user else key.owner
        scopes = frozenset(key.scopes)
        return Caller(owner, scopes, key.id, everyone="admin" in scopes and not user)


def caller_of(connection: Connection) -> Caller:
    """Who was let in. A route that lets in anybody knows nobody."""
    return cast("Caller", connection.scope["state"][_CALLER])


def keyless(connection: Connection, trust: bool) -> Caller:
    """Who asks where no keys are needed: the user that a trusted proxy names, or the one at home."""
    user = _user_of(connection) if trust else ""
    return Caller(user or LOCAL, frozenset(SCOPES), everyone=not user)


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


def _user_of(connection: Connection) -> str:
    given = connection.headers.getall("x-openwebui-user-id", [])
    return given[0] if len(given) == 1 and _USER.fullmatch(given[0]) else ""


def _scope(access: Access) -> str:
    return {"link": "generate", "keys": "admin"}.get(access, access)


def _only_tells_methods(handler: BaseRouteHandler) -> bool:
    return isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}
