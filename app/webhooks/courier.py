"""One attempt to deliver: to a checked address, signed, and what came of it.

What you can rely on: the connection is made to an address that was checked for this very attempt, and
no name is resolved after the check; TLS is verified against the name. No redirect is followed, no
proxy or other setting of the environment used, no cookie kept; of the answer only its head is read.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from app.webhooks.addresses import Refused, Resolve, Resolver, addresses_of
from app.webhooks.allow_list import Target
from app.webhooks.policy import WebhookPolicy

_ADDRESSES = 3
"""Of one host that are tried in one attempt."""

_LONGEST_WAIT = 300.0
"""Seconds that a receiver may ask us to wait."""


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: with `why` if not well, `again` if another may end better, and the seconds
    that the receiver wants us to wait before it."""

    why: str = ""
    again: bool = False
    wait: float = 0.0


def sign(keys: tuple[bytes, ...], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of https://www.standardwebhooks.com/."""
    said = f"{delivery_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, said, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


class Courier:
    """`clock` gives Unix seconds; `resolve` and `tls` replace the system's resolver and trust store."""

    def __init__(
        self,
        policy: WebhookPolicy,
        clock: Callable[[], float],
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._keys = policy.keys()
        self._timeout = policy.timeout
        self._clock = clock
        self._resolver = Resolver(policy.at_once)
        self._resolve = resolve or self._resolver
        if tls is None:  # reading the authorities takes 0.1 s, so only when something may be sent
            tls = _system_trust() if policy.hosts else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Connections are not kept: two names may share an address, and TLS vouches for only one.
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def deliver(self, target: Target, delivery_id: str, body: bytes) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await addresses_of(
                    target.host, target.port, inside=target.inside, resolve=self._resolve
                )
                return await self._post(target, addresses[:_ADDRESSES], delivery_id, body)
        except Refused:
            return Outcome("its address is not allowed")
        except TimeoutError:
            return Outcome("no answer in time", again=True)
        except (OSError, httpx.HTTPError) as error:
            return Outcome(type(error).__name__, again=True)

    async def _post(
        self, target: Target, addresses: list[str], delivery_id: str, body: bytes
    ) -> Outcome:
        timestamp = int(self._clock())
        headers = {
            "host": target.authority,
            "user-agent": "Easel",
            "content-type": "application/json",
            "connection": "close",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._keys, delivery_id, timestamp, body),
        }
        extensions = {
            "sni_hostname": target.host,
            "timeout": {"connect": self._timeout / len(addresses)},
        }
        for address in addresses:
            host = f"[{address}]" if ":" in address else address
            url = f"{target.scheme}://{host}:{target.port}{target.path}"
            request = httpx.Request(
                "POST", url, headers=headers, content=body, extensions=extensions
            )
            try:
                response = await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
            else:
                await response.aclose()
                return _outcome(response, self._clock())
        raise AssertionError("there is at least one address")

    async def close(self) -> None:
        self._resolver.close()
        await self._transport.aclose()


def _outcome(response: httpx.Response, now: float) -> Outcome:
    status = response.status_code
    if response.is_success:
        return Outcome()
    if status in (408, 429) or status >= 500:
        wait = _retry_after(response.headers.get("retry-after", ""), now)
        return Outcome(f"HTTP {status}", again=True, wait=wait)
    return Outcome(f"HTTP {status}")


def _retry_after(given: str, now: float) -> float:
    """Seconds, of a number or a date; 0 for what is neither."""
    try:
        wait = float(given) if given.isdecimal() else parsedate_to_datetime(given).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), _LONGEST_WAIT)


def _system_trust() -> ssl.SSLContext:
    """The bundled authorities and those of this machine: companies have their own."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context
