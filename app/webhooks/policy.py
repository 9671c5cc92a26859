"""What the operator allows and sets for webhooks."""

from __future__ import annotations

import base64
import binascii

import msgspec

from app.webhooks.allow_list import AllowList

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)
"""Of https://www.standardwebhooks.com/."""


class WebhookPolicy(msgspec.Struct, frozen=True):
    """No webhook is sent while `hosts` is empty. Times are seconds.

    `hosts` is the allow-list, see `allow_list`; `secret` is `whsec_` and base64, or several of these
    with spaces between: each signs, so that receivers can be moved from one to the next.

    Raises ValueError: an entry or a secret cannot be used; the message never holds the secret.
    """

    hosts: tuple[str, ...] = ()
    secret: str = ""
    interval: float = 1.0
    """Between two `job.progress` of one job."""
    backoff: tuple[float, ...] = (1.0, 5.0, 25.0, 125.0)
    """Before each further attempt, give or take a quarter."""
    timeout: float = 10.0
    """For one attempt: name, connection, answer."""
    at_once: int = 64
    per_host: int = 4
    """Attempts under way, of all and of one host."""
    room: int = 64 << 20
    """Bytes that may wait; one host may take a quarter of them."""

    def __post_init__(self) -> None:
        AllowList(self.hosts)
        if self.hosts and not self.keys():
            raise ValueError(
                "webhook_secret is needed to sign webhooks; webhook_hosts allows some."
            )

    def __repr__(self) -> str:
        return f"WebhookPolicy(hosts={self.hosts!r})"

    def keys(self) -> tuple[bytes, ...]:
        return tuple(_key(secret) for secret in self.secret.split())


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError("webhook_secret must be whsec_ and the base64 of 24 to 64 random bytes.")
    return key
