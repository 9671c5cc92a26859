"""What stands before all routes: which name the server goes by, which pages may ask, how many bytes are
taken in at once, and one line in the log for each request.

A page on the internet can make a browser send requests to this machine, also under a name of its own
that leads here ("DNS rebinding"). So names (`Host`) and pages (`Origin`) are looked at before anything
else. Litestar's own check of hosts refuses every one with a port (2.25).
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api._http import envelope_of, request_id
from app.domain.access import Caller
from app.domain.errors import NotAllowed
from app.reception import Reception

_log = logging.getLogger("app.requests")

_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_-][A-Za-z0-9_.-]{0,252}))(?::([0-9]{1,5}))?"
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_READS = ("GET", "HEAD", "OPTIONS")
_QUIET = ("/health", "/ready")
"""Asked every few seconds by whoever watches over the server."""

_FREE, _STEP = 1 << 20, 4 << 20
"""Bytes of a body that are not counted, and in which steps the rest is."""

_LENGTH_DIGITS = 6
"""Of a body that is not worth a word: it is whole by the time that it is answered."""

_POLICY_VIOLATION = 1008


class Hosts:
    """Names that the server goes by: `names`, where "*.example.com" is each one below that, "*" any.

    Addresses are always good: no page can have one that leads here and is not this server's.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in names}

    def allows(self, host: str | None) -> bool:
        name = name_in(host)
        if name is None:
            return False
        try:
            return not ipaddress.ip_address(name).is_unspecified
        except ValueError:
            parents = {f"*.{name.split('.', cut)[-1]}" for cut in range(1, name.count(".") + 1)}
            return not self._names.isdisjoint({"*", name, *parents})


def name_in(host: str | None) -> str | None:
    """The name or address in a `Host` header, in small letters; None where it is not well-formed."""
    found = _HOST.fullmatch(host or "")
    if found is None or int(found[3] or 0) > 65_535:
        return None
    if found[1] is not None:
        try:
            return str(ipaddress.IPv6Address(found[1]))
        except ValueError:
            return None
    return found[2].lower().removesuffix(".")


def hosts_of(given: Iterable[str], *, keyless: bool) -> Hosts:
    """Where keys are always needed, a foreign name gets a page nothing, and any will do unless some are
    given; else only names of this machine and those that are given."""
    names = list(given)
    return Hosts([*names, *_LOOPBACK] if keyless or names else ["*"])


class Gate:
    """An ASGI application before another. `origins` are pages of elsewhere that may ask."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts,
        origins: Iterable[str],
        reception: Reception,
        *,
        log_requests: bool,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origins)
        self._reception = reception
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        body = _Body(scope, receive, self._reception)
        sending = _Sending(send, body)
        try:
            if (refused := self._refused(scope)) is not None:
                await _answer(scope, sending, refused)
            else:
                await self._app(scope, body, sending)
        finally:
            body.release()
            if self._log_requests and scope["path"] not in _QUIET:
                _tell(scope, sending.status, time.monotonic() - began)

    def _refused(self, scope: Scope) -> NotAllowed | None:
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._hosts.allows(hosts[0]):
            return NotAllowed(
                "The server does not go by this name; see allowed_hosts in its settings."
            )
        origins = headers.get(b"origin", [])
        if not origins:
            foreign = headers.get(b"sec-fetch-site", [""])[0] == "cross-site"
            changes = (
                scope.get("method", "GET") not in _READS or scope["type"] == ScopeType.WEBSOCKET
            )
            allowed = not (foreign and changes)
        else:
            allowed = len(origins) == 1 and self._may_ask(origins[0], hosts[0])
        if not allowed:
            return NotAllowed("Pages of elsewhere may not ask; see cors_origins in the settings.")
        return None

    def _may_ask(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        kind, mark, rest = origin.partition("://")
        return bool(mark) and kind in ("http", "https") and rest.lower() == host.lower()


class _Body:
    """Takes in a body, and has what is beyond a little of it counted while it comes."""

    def __init__(self, scope: Scope, receive: Receive, reception: Reception) -> None:
        self._receive = receive
        self._reception = reception
        self._came = 0
        self._held = 0
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.whole = b"transfer-encoding" not in headers and len(length) < _LENGTH_DIGITS

    async def __call__(self) -> Any:
        """Raises UploadsFull."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._came += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            while not self.whole and self._came > _FREE + self._held:
                self._reception.receive(_STEP)
                self._held += _STEP
            if self.whole:
                self.release()  # from here on whoever reads it answers for it
        return message

    def release(self) -> None:
        self._reception.release(self._held)
        self._held = 0


class _Sending:
    """Sends, and sees with which status."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send = send
        self._body = body
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400 and not self._body.whole:
                # Or the server would go on reading what nobody wants, for as long as it comes.
                names = {name.lower() for name, _ in message["headers"]}
                if b"connection" not in names:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)


async def _answer(scope: Scope, send: Send, error: NotAllowed) -> None:
    if scope["type"] == ScopeType.WEBSOCKET:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})
        return
    body = msgspec.json.encode(envelope_of(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _tell(scope: Scope, status: int | None, seconds: float) -> None:
    """What was asked for is told by its route: an address may hold anything."""
    caller = scope["state"].get("easel_caller")
    client = scope.get("client")
    told = {
        "method": scope.get("method", "WEBSOCKET"),
        "route": scope.get("path_template") or "unknown",
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": request_id(scope),
        "client": client[0] if client else None,
    }
    if isinstance(caller, Caller) and caller.key:
        told["key"] = caller.key
    _log.info("request", extra=told)
