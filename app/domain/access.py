"""Keys, what each of them may, and whose jobs somebody may see."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Scope = Literal["generate", "models", "admin"]
"""`generate` draws and sees what it drew, `models` fetches, loads and removes models, `admin` may
everything and sees everybody's jobs."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

Access = Literal["public", "any", "generate", "models", "admin", "keys", "link"]
"""What a route asks for: nothing; any key; a scope; for `keys` an admin, also where no keys are needed;
for `link` a signed address or else `generate`."""

LOCAL = "local"
"""The owner of all that is asked for without a key, and without a trusted proxy that names a user."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """How much a key may; 0 is without limit. `queue_share` is a part (0 to 1) of the places in the
    queue, `gpu_seconds_per_day` the seconds that devices work for it between midnights (UTC)."""

    requests_per_minute: int = 0
    running_jobs: int = 0
    queue_share: float = 0.0
    gpu_seconds_per_day: float = 0.0


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key but for the key itself. Times are Unix seconds."""

    id: str
    name: str
    owner: str
    scopes: tuple[Scope, ...]
    created: float
    allowance: Allowance = Allowance()
    revoked: float | None = None


class Caller(msgspec.Struct, frozen=True):
    """Who asks. `key` is the id of a key, or "" where none was needed; `everyone` sees all jobs."""

    owner: str
    scopes: frozenset[str]
    key: str = ""
    everyone: bool = False

    def may(self, access: Access) -> bool:
        if access in ("public", "any") or "admin" in self.scopes:
            return True
        return ("generate" if access == "link" else access) in self.scopes

    def sees(self, owner: str) -> bool:
        return self.everyone or owner == self.owner


def account_of(owner: str) -> str:
    """Whose key an owner's jobs came with: users behind a key are `account/user`."""
    return owner.partition("/")[0]
