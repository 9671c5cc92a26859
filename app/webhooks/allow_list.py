"""Which URLs a client may give: the operator's list of hosts.

An entry is `[http://]host[:port]`. The host is a name, an address (IPv6 in brackets), `*.name` for
whatever lies below that name, or `*` for every public host.

What you can rely on: https only, unless an entry starts with `http://`. An entry without a port allows
every port. Private addresses are reached only through an entry that can mean nothing else: an exact
host with its port, an address, or a name of a kind that is never public (`hooks.internal`). What is
checked is what is sent: the URL is read once, and sent from its parts.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, NoReturn

import httpx

from app.domain.errors import InvalidRequest
from app.webhooks.addresses import is_allowed

_LONGEST = 2048
_ENTRY = re.compile(r"(?:(https?)://)?(\*|(?:\*\.)?[^*:/?#@\[\]\s]+|\[[^\]]+\])(?::(\d{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_HOUSE_NAME = re.compile(r"[^.]+|.+\.(?:localhost|local|internal|lan|home\.arpa)")
"""Never public: no dot, or a domain that is set apart for private use."""


class Target(NamedTuple):
    """Where to send. `path` holds the query too; `inside`: private addresses are meant."""

    scheme: str
    host: str
    port: int
    path: str
    inside: bool

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class _Entry(NamedTuple):
    http: bool
    host: str
    port: int | None

    @classmethod
    def read(cls, text: str) -> _Entry:
        found = _ENTRY.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"webhook_hosts: {text!r} is not [http://]host[:port].")
        scheme, name, port = found.groups()
        stars = "*." if name.startswith("*.") else ""
        if port and not 0 < int(port) < 65536:
            raise ValueError(f"webhook_hosts: {text!r} has no such port.")
        try:
            if name != "*":
                name = stars + _canonical(httpx.URL(f"https://{name.removeprefix('*.')}/"))
        except (httpx.InvalidURL, ValueError):
            raise ValueError(f"webhook_hosts: {text!r} names no host.") from None
        if stars and _is_address(name.removeprefix("*.")):
            raise ValueError(f"webhook_hosts: {text!r} has nothing below it.")
        return cls(scheme == "http", name, int(port) if port else None)

    @property
    def inside(self) -> bool:
        if self.host == "*":
            return False
        if _HOUSE_NAME.fullmatch(self.host) or _is_address(self.host):
            return True
        return self.port is not None and not self.host.startswith("*.")

    def covers(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return self.host in ("*", host)


class AllowList:
    """Raises ValueError: an entry cannot be read."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        self._entries = tuple(_Entry.read(entry) for entry in entries)

    def read(self, url: str) -> Target:
        """Raises InvalidRequest: no webhook may go there, as far as can be seen without asking DNS."""
        if not self._entries:
            _refuse("This server sends no webhooks: its operator has not allowed any host.")
        scheme, host, port, path = _parts(url)
        entries = [entry for entry in self._entries if entry.covers(host, port)]
        if not entries:
            _refuse("The operator of this server does not allow webhooks to this host.")
        entries = [entry for entry in entries if entry.http or scheme == "https"]
        if not entries:
            _refuse("The operator of this server allows only https to this host.")
        inside = any(entry.inside for entry in entries)
        if _is_address(host):
            allowed = is_allowed(ip_address(host), inside=inside)
        else:
            allowed = inside or not _HOUSE_NAME.fullmatch(host)
        if not allowed:
            _refuse("A webhook must lead to a public address.")
        return Target(scheme, host, port, path, inside)


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port, and path with query. The host is as DNS or the socket takes it."""
    if len(url) > _LONGEST:
        _refuse(f"A webhook's URL has at most {_LONGEST} characters.")
    if not url.isprintable() or re.search(r"[\s\\]", url):
        _refuse("A webhook's URL holds no spaces, control characters or backslashes.")
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL:
        _refuse("The webhook cannot be read as a URL.")
    if read.scheme not in ("https", "http"):
        _refuse("A webhook's URL starts with https://.")
    if "@" in re.split(r"[/?#]", url.partition("://")[2])[0]:
        _refuse("A webhook's URL holds no user name or password.")
    if "#" in url:
        _refuse("A webhook's URL has no fragment.")
    try:
        host = _canonical(read)
    except ValueError:
        _refuse("The webhook's host is not a name or an address.")
    port = read.port if read.port is not None else 443 if read.scheme == "https" else 80
    if not 0 < port < 65536:
        _refuse("The webhook's port is not one of 1 to 65535.")
    return read.scheme, host, port, read.raw_path.decode("ascii")


def _canonical(url: httpx.URL) -> str:
    """The one spelling of a host that lists, DNS and TLS agree on.

    Raises ValueError, also for what some resolvers take for an address: `127.1`, `0x7f000001`.
    """
    host = url.raw_host.decode("ascii").lower()
    if ":" in host:
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise AddressValueError("An address with a scope leads elsewhere on each machine.")
        return str(address)
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return str(IPv4Address(host))
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("Not a host name.")
    return ".".join(labels)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message, param="webhook") from None
