"""Keys and what they spent, as they are stored: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from app.domain.access import Allowance
from app.domain.errors import InvalidRequest, NotFound
from app.store.database import Database
from app.store.keys import KeyRing
from app.store.spending import Ledger

NOON = 1_795_262_400.0
DAY = 86_400.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with await Database.open(database_url) as opened:
        yield opened


async def make(ring: KeyRing, name: str = "ann", **given: float) -> tuple[str, str]:
    allowance = Allowance(**given)  # type: ignore[arg-type]
    key, text_ = await ring.create(name, owner=name, scopes=("generate",), allowance=allowance)
    return key.id, text_


async def test_a_key_is_recognised_and_outlives_a_restart(database_url: str) -> None:
    async with await Database.open(database_url) as database:
        ring = KeyRing(database)
        assert not await ring.needed()
        key_id, text_ = await make(ring, requests_per_minute=5, queue_share=0.5)
    async with await Database.open(database_url) as database:
        ring = KeyRing(database)
        assert await ring.needed()
        found = await ring.find(text_)
        assert found is not None
        assert (found.id, found.owner, found.scopes) == (key_id, "ann", ("generate",))
        assert found.allowance == Allowance(requests_per_minute=5, queue_share=0.5)
        assert await ring.find(text_[:-1]) is None
        assert await ring.find(text_.replace("easel", "lease")) is None


async def test_the_text_of_a_key_is_nowhere_in_the_store(database: Database) -> None:
    _, text_ = await make(KeyRing(database))
    rows = await database.read(
        lambda connection: connection.execute(text("SELECT * FROM keys")).all()
    )
    assert text_.rpartition("-")[2] not in str(rows)


async def test_a_revoked_key_is_no_key_and_the_door_stays_shut(database: Database) -> None:
    ring = KeyRing(database)
    key_id, text_ = await make(ring)
    revoked = await ring.revoke(key_id)
    assert revoked.revoked is not None
    assert await ring.find(text_) is None
    assert await ring.needed()
    assert (await ring.revoke(key_id)).revoked == revoked.revoked
    await ring.forget(key_id)
    assert not await ring.needed()
    with pytest.raises(NotFound):
        await ring.revoke(key_id)


async def test_what_another_process_changes_counts_at_once(postgres: object) -> None:
    url = postgres.fresh()  # type: ignore[attr-defined]
    async with await Database.open(url) as ours, await Database.open(url) as theirs:
        server, shell = KeyRing(ours), KeyRing(theirs)
        assert not await server.needed()
        key_id, text_ = await make(shell)
        assert await server.find(text_) is not None
        await shell.revoke(key_id)
        assert await server.find(text_) is None


async def test_the_newest_good_key_says_how_much_an_owner_may(database: Database) -> None:
    now = NOON
    ring = KeyRing(database, clock=lambda: now)
    await make(ring, running_jobs=1)
    now += 1
    newer, _ = await make(ring, running_jobs=2)
    assert ring.allowance("ann").running_jobs == 2
    await ring.revoke(newer)
    assert ring.allowance("ann").running_jobs == 1
    assert ring.allowance("nobody") == Allowance()


@pytest.mark.parametrize("name", ["", "two words", "a/b", "x" * 65, "é", "a\n"])
async def test_names_are_plain(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await make(KeyRing(database), name)


# -- spending --------------------------------------------------------------------------------------


async def test_what_was_spent_is_known_after_a_restart_and_forgotten_at_midnight(
    database_url: str,
) -> None:
    now = NOON
    async with await Database.open(database_url) as database:
        ledger = Ledger(database, clock=lambda: now)
        ledger.add("ann/user", "job", 1.5)
        ledger.add("ann", "job", 0.5)
        ledger.add("bob", "other", 4.0)
        assert (ledger.today("ann"), ledger.of_job("job")) == (2.0, 2.0)
        await ledger.save()
        ledger.add("ann", "third", 1.0)
        await ledger.save()
    async with await Database.open(database_url) as database:
        ledger = Ledger(database, clock=lambda: now)
        await ledger.load()
        assert (ledger.today("ann"), ledger.today("bob")) == (3.0, 4.0)
        now += DAY
        assert ledger.today("ann") == 0.0


async def test_what_could_not_be_saved_is_saved_later(database: Database) -> None:
    ledger = Ledger(database, clock=lambda: NOON)
    ledger.add("ann", "job", 2.0)
    working, database.write = database.write, _broken  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="no room"):
        await ledger.save()
    database.write = working  # type: ignore[method-assign]
    await asyncio.gather(ledger.save(), ledger.save())
    again = Ledger(database, clock=lambda: NOON)
    await again.load()
    assert again.today("ann") == 2.0


async def _broken(_: object) -> None:
    raise OSError("no room")
