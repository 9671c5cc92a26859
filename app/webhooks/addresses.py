"""Which addresses a webhook may be sent to, and the addresses of a name.

What you can rely on: an address is public only if every registry says so, whatever Python's version
knows; IPv4 addresses that are carried inside an IPv6 address count as themselves. The addresses of
cloud metadata services are refused even where the operator allows private ones.

The known libraries did not fit: safehttpx has only GET and asks Google's DNS, microsoft-antissrf is
for requests, httpx-secure opens a connection to an address before it judges it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(word) for word in text.split())


_SPECIAL = _networks(
    """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12
    192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
    192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20
    """
)
"""IANA's special-purpose registries, and Azure's 168.63.129.16. For IPv6, only what is in 2000::/3."""

_NEVER = _networks(
    """
    0.0.0.0/8 100.100.100.200/32 168.63.129.16/32 169.254.0.0/16 192.0.0.192/32 224.0.0.0/4
    240.0.0.0/4 ::/128 fe80::/10 ff00::/8 fd00:ec2::254/128 fd20:ce::254/128
    """
)
"""Unspecified, link-local, multicast, reserved, and where clouds serve their machines' secrets."""


class Refused(Exception):
    """A name leads where webhooks must not go."""


def is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        if address in _NAT64:  # what a DNS64 makes of a public IPv4 address
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST:
            return False
    return address.is_global and not any(address in network for network in _SPECIAL)


def is_allowed(address: Address, *, inside: bool) -> bool:
    """Whether to connect; `inside` says that the operator means a host of their own network."""
    if not inside:
        return is_public(address)
    return not any(face in network for face in _faces(address) for network in _NEVER)


def _faces(address: Address) -> Iterator[Address]:
    """The address, and what a translator would make of it."""
    yield address
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            yield address.ipv4_mapped
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
            yield IPv4Address(int(address) & 0xFFFFFFFF)


async def addresses_of(host: str, port: int, *, inside: bool, resolve: Resolve) -> list[str]:
    """The addresses of `host`, in the resolver's order; an address is its own.

    Raises:
        Refused: one of them is not allowed; a name that has one such is not trusted with the others.
        OSError: the name is not known now.
    """
    try:
        found = [str(ip_address(host))]
    except ValueError:
        found = list(dict.fromkeys(await resolve(host, port)))
    if not found:
        raise OSError("The name has no address.")
    if not all(is_allowed(ip_address(address), inside=inside) for address in found):
        raise Refused
    return found


class Resolver:
    """The system's resolver, in threads of its own: slow names keep nobody else from a thread."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="webhook-names")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Raises OSError."""
        infos = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(info[4][0]) for info in infos]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
