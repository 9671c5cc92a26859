"""Keys: made, recognised, revoked.

What you can rely on: a key is shown once and stored as a digest only; how long it takes to refuse a
wrong one tells nothing of a right one; one that was revoked, also by another process, is not recognised
by any `find` that begins after that was committed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from app.domain.access import Allowance, ApiKey, Scope
from app.domain.errors import InvalidRequest, NotFound
from app.store.database import Database
from app.store.schema import KEYS, META

_KEY = re.compile(r"easel-([0-9a-f]{12})-[0-9a-f]{64}")
"""An id, which may be shown, and 256 secret bits: too many to guess, so that one SHA-256 is enough."""

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_VERSION = "keys"
"""The row of `meta` that changes with every change of the keys."""


class _Known(msgspec.Struct, frozen=True):
    key: ApiKey
    digest: str


class KeyRing:
    """All keys of a database, held in memory. Raises StoreUnavailable. `clock` gives Unix seconds."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._version: str | None = None
        self._fresh = False

    async def needed(self) -> bool:
        """Whether keys are asked for: as soon as there is one, and also when all are revoked."""
        await self._look()
        return bool(self._known)

    async def find(self, presented: str) -> ApiKey | None:
        """The key, if it is one and was not revoked."""
        await self._look()
        shape = _KEY.fullmatch(presented)
        known = self._known.get(shape[1] if shape else "")
        given = hashlib.sha256(presented.encode("utf-8", "replace")).hexdigest()
        same = hmac.compare_digest(given, known.digest if known else _NOBODY)
        return known.key if known and same and known.key.revoked is None else None

    async def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        await self._look()
        return sorted((known.key for known in self._known.values()), key=lambda key: key.created)

    def allowance(self, account: str) -> Allowance:
        """How much an owner of keys may: what the newest good one says. For those just recognised."""
        good = [
            known.key
            for known in self._known.values()
            if known.key.owner == account and known.key.revoked is None
        ]
        return max(good, key=lambda key: key.created).allowance if good else Allowance()

    async def create(
        self, name: str, *, owner: str, scopes: tuple[Scope, ...], allowance: Allowance
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which nobody will ever be told again. Raises InvalidRequest."""
        for what, text in (("name", name), ("owner", owner)):
            if not _NAME.fullmatch(text):
                raise InvalidRequest("Use 1 to 64 letters, digits and _ . @ -", param=what)
        key_id = secrets.token_hex(6)
        text = f"easel-{key_id}-{secrets.token_hex(32)}"
        key = ApiKey(
            id=key_id,
            name=name,
            owner=owner,
            scopes=tuple(sorted(set(scopes))),
            created=self._clock(),
            allowance=allowance,
        )
        row = msgspec.structs.asdict(key) | msgspec.structs.asdict(allowance)
        del row["allowance"]
        row |= {"scopes": " ".join(key.scopes), "digest": _digest(text)}
        await self._change(lambda connection: connection.execute(insert(KEYS).values(row)))
        return key, text

    async def revoke(self, key_id: str) -> ApiKey:
        """From now on nobody is let in with it. Raises NotFound."""

        def work(connection: Connection) -> None:
            _row(connection, key_id)
            good = (KEYS.c.id == key_id) & KEYS.c.revoked.is_(None)
            connection.execute(update(KEYS).where(good).values(revoked=self._clock()))

        await self._change(work)
        return self._known[key_id].key

    async def forget(self, key_id: str) -> None:
        """Remove it altogether. After the last one, no key is asked for. Raises NotFound."""

        def work(connection: Connection) -> None:
            _row(connection, key_id)
            connection.execute(delete(KEYS).where(KEYS.c.id == key_id))

        await self._change(work)

    async def _change(self, work: Callable[[Connection], object]) -> None:
        version = secrets.token_hex(8)

        def both(connection: Connection) -> None:
            work(connection)
            of = META.c.name == _VERSION
            if not connection.execute(update(META).where(of).values(value=version)).rowcount:
                connection.execute(insert(META).values(name=_VERSION, value=version))

        await self._database.write(both)
        self._fresh = False
        await self._look()

    async def _look(self) -> None:
        """See whether something has changed: a row is read for that where others may have written."""
        if self._fresh and not self._database.shared:
            return
        version = await self._database.read(_version)
        if not self._fresh or version != self._version:
            self._version, self._known = await self._database.read(_all)
            self._fresh = True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _version(connection: Connection) -> str | None:
    return cast(
        "str | None",
        connection.scalar(select(META.c.value).where(META.c.name == _VERSION)),
    )


def _row(connection: Connection, key_id: str) -> Row[Any]:
    row = connection.execute(select(KEYS).where(KEYS.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such key.", param="id")
    return row


def _all(connection: Connection) -> tuple[str | None, dict[str, _Known]]:
    """The keys, and the version that they are: of one snapshot."""
    version = _version(connection)
    known = {}
    for row in connection.execute(select(KEYS)).mappings():
        facts = dict(row)
        allowance = Allowance(**{name: facts.pop(name) for name in Allowance.__struct_fields__})
        digest, scopes = facts.pop("digest"), tuple(facts.pop("scopes").split())
        key = ApiKey(**facts, scopes=scopes, allowance=allowance)
        known[key.id] = _Known(key, digest)
    return version, known
