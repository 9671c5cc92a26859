"""Jobs and events in the database, the same on SQLite and on PostgreSQL.

Promised: an accepted job is there after a restart, with its input pictures; events have no gaps and no
twins; one end only, and none from an attempt that another one has replaced; a store that does not
answer accepts nothing.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, text

from app.domain.errors import NotFound
from app.domain.events import (
    TERMINAL,
    Expired,
    Failed,
    JobCancelled,
    JobEvent,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job
from app.domain.request import Terms
from app.store.database import Database, StoreRefused, sqlite_warning
from app.store.errors import StorageFull, StoreUnavailable
from app.store.jobs import JobStore, News
from app.store.schema import SCHEMA
from app.store.timings import Timing, Timings
from tests.postgres import Server
from tests.stored import NOON, Teller, finish, make_job


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with await Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def folded(job: Job, events: list[NumberedEvent]) -> Job:
    for numbered in events:
        job.apply(numbered)
    return job


# -- accepted means durable ------------------------------------------------------------------------


async def test_an_accepted_job_is_there_after_a_restart(database_url: str) -> None:
    job = make_job("Ein grüner Würfel 🎨", image=b"\x89PNG in", mask_image=b"\x00" * 9000, n=2)
    job.terms = Terms(priority="background", deadline=9.5)
    async with await Database.open(database_url) as database:
        await JobStore(database).accept(job)
    async with await Database.open(database_url) as database:
        store = JobStore(database)
        assert await store.unfinished() == [job]
        assert await store.with_inputs(job.id) == job
        bare = msgspec.structs.replace(job, request=job.request.without_pictures())
        assert await store.get(job.id) == bare
        assert await store.events(job.id) == []


async def test_many_jobs_at_once_are_all_there_in_order(store: JobStore) -> None:
    jobs = [make_job(f"number {number}") for number in range(300)]
    await asyncio.gather(*(store.accept(job) for job in jobs))
    assert [job.id for job in await store.unfinished()] == [job.id for job in jobs]


async def test_writes_that_wait_share_a_commit(store: JobStore, database: Database) -> None:
    commits: list[int] = []
    event.listen(database.writer, "commit", lambda _: commits.append(1))
    await asyncio.gather(*(store.accept(make_job()) for _ in range(100)))
    assert len(commits) <= 3


async def test_one_refused_write_does_not_take_its_neighbours_along(
    store: JobStore, database: Database
) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("INSERT INTO meta (name, value) VALUES ('half', 'done')"))
        raise LookupError

    jobs = [make_job(), make_job()]
    outcomes = await asyncio.gather(
        store.accept(jobs[0]), database.write(broken), store.accept(jobs[1]), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), LookupError, type(None)]
    assert len(await store.unfinished()) == 2
    count = text("SELECT count(*) FROM meta WHERE name = 'half'")
    assert await database.read(lambda connection: connection.scalar(count)) == 0


async def test_a_job_that_was_accepted_already_is_not_there_twice(store: JobStore) -> None:
    job = make_job(image=b"input")
    await store.accept(job)
    await store.accept(job)
    assert await store.unfinished() == [job]


async def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for ask in (store.get, store.events, store.with_inputs):
        with pytest.raises(NotFound):
            await ask("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert await store.append([Teller(make_job()).ending()]) == [False]


# -- events ----------------------------------------------------------------------------------------


async def test_events_come_back_as_they_were_told_and_make_the_job(store: JobStore) -> None:
    jobs = [make_job(), make_job()]
    tellers = [Teller(job) for job in jobs]
    for job in jobs:
        await store.accept(job)
    news = [one for teller in tellers for one in (*teller.beginning(), teller.ending())]
    random.Random(3).shuffle(news)
    news.sort(key=lambda one: one.event.number)
    assert await store.append(news) == [True] * 8
    for job in jobs:
        events = await store.events(job.id)
        assert events == [one.event for one in news if one.job_id == job.id]
        assert await store.events(job.id, after=2) == events[2:]
        assert await store.events(job.id, after=99) == []
        assert await store.get(job.id) == folded(job, events)
    assert await store.unfinished() == []


async def test_numbers_have_no_gaps_and_no_twins(store: JobStore) -> None:
    job = make_job()
    await store.accept(job)
    first = News(job.id, 0, NumberedEvent(1, NOON, Queued(3, 9.0, "behind 2")))
    third = News(job.id, 0, NumberedEvent(3, NOON, Queued(1, 3.0, "next")))
    other = News(job.id, 0, NumberedEvent(1, NOON, Queued(2, 6.0, "behind 1")))
    assert await store.append([first, third, first, other]) == [True, False, True, False]
    assert await store.append([first, other]) == [True, False], "brought again after an error"
    assert await store.events(job.id) == [first.event]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Succeeded(), "succeeded"),
        (Failed("worker_crashed", "It died."), "failed"),
        (JobCancelled(), "cancelled"),
        (Expired("deadline_exceeded", "Too late."), "expired"),
    ],
)
async def test_a_job_ends_once(store: JobStore, ending: Succeeded, status: str) -> None:
    await store.accept(job := make_job())
    teller = Teller(job)
    assert all(await store.append(teller.beginning()))
    first = teller.ending(ending)
    rivals = [
        News(job.id, 1, NumberedEvent(number, NOON, Failed("internal_error", "No.")))
        for number in (first.event.number, first.event.number + 1)
    ]
    told = await asyncio.gather(store.append([first]), *(store.append([one]) for one in rivals))
    assert told == [[True], [False], [False]]
    assert await store.append([*rivals, first]) == [False, False, True]
    events = await store.events(job.id)
    assert [one for one in events if isinstance(one.event, TERMINAL)] == [first.event]
    assert (await store.get(job.id)).status == status


async def test_a_late_result_of_an_older_attempt_changes_nothing(store: JobStore) -> None:
    job = make_job()
    await store.accept(job)
    first = Teller(job)
    assert all(await store.append(first.beginning()))
    second = Teller(job, last=first.last, attempt=1)
    assert all(await store.append([second.news(Queued(1, 1.0, "again"))]))
    assert all(await store.append([second.news(Started("cpu", 2))]))
    before = await store.get(job.id)
    late = msgspec.structs.replace(second.news(Succeeded()), attempt=1)
    assert await store.append([late]) == [False]
    backwards = News(job.id, 2, NumberedEvent(late.event.number, NOON, Started("cpu", 2)))
    assert await store.append([backwards]) == [False], "an attempt begins once"
    assert await store.get(job.id) == before
    assert before.status == "running"
    assert before.attempt == 2
    assert await store.append([msgspec.structs.replace(late, attempt=2)]) == [True]


async def test_stored_events_hold_no_previews(store: JobStore) -> None:
    job = make_job()
    await store.accept(job)
    teller = Teller(job)
    shown = Progressed("generating", 40.0, 0.5, 2.0, "Generating", 1, 3, preview=b"\x89PNG small")
    news = [*teller.beginning(), teller.news(shown)]
    assert all(await store.append(news))
    assert await store.append(news) == [True] * 4
    stored = (await store.events(job.id))[3]
    assert stored.event == msgspec.structs.replace(shown, preview=None)


async def test_any_news_in_any_order_keep_the_rules(store: JobStore) -> None:
    """Random news, right and wrong, against a plain reckoning of what must count."""
    rng = random.Random(11)
    jobs = [make_job() for _ in range(4)]
    for job in jobs:
        await store.accept(job)
    told: dict[str, list[NumberedEvent]] = {job.id: [] for job in jobs}
    mirror = {job.id: msgspec.structs.replace(job, images={}) for job in jobs}
    for _ in range(120):
        batch, expected = [], []
        for _ in range(rng.randint(1, 6)):
            job = mirror[rng.choice(jobs).id]
            number = len(told[job.id]) + rng.choice([1, 1, 1, 0, 2])
            kinds: list[JobEvent] = [
                Queued(1, 1.0, ""),
                Started("cpu", rng.randint(1, 4)),
                Progressed("preparing", 1.0, 0.1, 2.0, ""),
                Succeeded(),
            ]
            kind = rng.choice(kinds)
            if isinstance(kind, Succeeded) and rng.random() < 0.8:
                kind = Queued(1, 1.0, "")
            attempt = rng.choice([job.attempt, job.attempt, job.attempt - 1])
            one = NumberedEvent(number, NOON + rng.random(), kind)
            right = not job.ended and number == len(told[job.id]) + 1
            if isinstance(kind, Started):
                right = right and kind.attempt > job.attempt
            else:
                right = right and attempt == job.attempt
            if right:
                told[job.id].append(one)
                job.apply(one)
            batch.append(News(job.id, attempt, one))
            expected.append(right)
        assert await store.append(batch) == expected
    assert any(job.ended for job in mirror.values())
    for job in jobs:
        assert await store.events(job.id) == told[job.id]
        assert await store.get(job.id) == mirror[job.id]


# -- a store that does not answer ------------------------------------------------------------------


async def test_a_locked_file_refuses_in_time_and_accepts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "easel.db"
    async with await Database.open(f"sqlite:///{file}") as database:
        store = JobStore(database)
        await store.accept(known := make_job())
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(store.accept(make_job()) for _ in range(20)), return_exceptions=True
        )
        assert time.monotonic() - began < 4
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        other.execute("ROLLBACK")
        other.close()
        await store.accept(later := make_job())
        assert await store.unfinished() == [known, later]


async def test_a_server_that_does_not_answer_refuses_in_time_and_leaves_no_ghost(
    postgres: Server,
) -> None:
    import psycopg

    url = postgres.fresh()
    async with await Database.open(url) as database:
        store = JobStore(database)
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE jobs")
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.accept(ghost := make_job(), within=0.3)
            assert time.monotonic() - began < 2
        await asyncio.sleep(0.2)
        assert [job.id for job in await store.unfinished()] == [ghost.id], "committed unseen"
        await store.accept(later := make_job())
        assert await store.unfinished() == [later]


async def test_after_a_restart_of_the_server_the_store_goes_on() -> None:
    server = Server()
    try:
        async with await Database.open(server.fresh()) as database:
            store = JobStore(database)
            await store.accept(first := make_job())
            assert await store.unfinished() == [first]
            server.stop()
            await asyncio.to_thread(server.start)
            assert await store.unfinished() == [first], "through connections that are dead"
            await store.accept(second := make_job())
            server.stop()
            with pytest.raises(StoreUnavailable):
                await store.accept(make_job())
            with pytest.raises(StoreUnavailable):
                await store.get(first.id)
            await asyncio.to_thread(server.start)
            await store.accept(third := make_job())
            assert await store.unfinished() == [first, second, third]
    finally:
        server.close()


async def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        store = JobStore(database)
        await database.write(
            lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=70").scalar()
        )
        accepted = []
        with pytest.raises(StorageFull):
            for _ in range(1000):
                job = make_job(image=b"x" * 2000)
                await store.accept(job)
                accepted.append(job)
        assert await store.unfinished() == accepted
        await database.write(
            lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=7000").scalar()
        )
        await store.accept(make_job(image=b"x" * 2000))
        assert await database.check() == []


async def test_a_closed_store_says_so(database_url: str) -> None:
    database = await Database.open(database_url)
    store = JobStore(database)
    jobs = [make_job() for _ in range(600)]
    accepting = [asyncio.create_task(store.accept(job, within=60)) for job in jobs]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*accepting)
    with pytest.raises(StoreUnavailable):
        await store.accept(make_job())
    with pytest.raises(StoreUnavailable):
        await store.get(jobs[0].id)
    async with await Database.open(database_url) as again:
        assert await JobStore(again).unfinished() == jobs


# -- opening ---------------------------------------------------------------------------------------


async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection)
        return [
            one for one in compare_metadata(context, SCHEMA) if "prompts" not in str(one)
            and "searched" not in str(one)
        ]  # fmt: skip

    assert await database.write(differences) == []


async def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    async with await Database.open(database_url) as database:
        name = database.instance
        newer = text("UPDATE alembic_version SET version_num = '9999'")
        await database.write(lambda connection: connection.execute(newer).rowcount)
    with pytest.raises(StoreRefused, match="newer"):
        await Database.open(database_url)
    assert len(name) == 32


async def test_a_database_keeps_its_name(database_url: str) -> None:
    names = []
    for _ in range(2):
        async with await Database.open(database_url) as database:
            names.append(database.instance)
    assert names[0] == names[1] != ""


async def test_one_file_has_one_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'easel.db'}"
    async with await Database.open(url):
        with pytest.raises(StoreRefused, match="in use"):
            await Database.open(url)
    await (await Database.open(url)).close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/easel"])
async def test_what_keeps_nothing_or_is_unknown_is_refused(url: str) -> None:
    with pytest.raises(StoreRefused):
        await Database.open(url)


async def test_an_absent_server_is_told_as_such() -> None:
    with pytest.raises(StoreUnavailable):
        await Database.open("postgresql://easel@127.0.0.1:1/none")


@pytest.mark.parametrize(
    ("version", "warned"),
    [((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 51, 2), True),
     ((3, 51, 3), False), ((4, 0, 0), False)],
)  # fmt: skip
def test_a_sqlite_that_can_damage_a_database_is_warned_of(
    version: tuple[int, int, int], warned: bool
) -> None:
    assert (sqlite_warning(version) is not None) == warned


async def test_only_the_writer_writes_on_sqlite(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        threads: set[str] = set()

        def note(*_: object) -> None:
            threads.add(threading.current_thread().name)

        event.listen(database.writer, "before_cursor_execute", note)
        store = JobStore(database)
        for _ in range(5):
            job = make_job()
            await store.accept(job)
            await finish(store, job)
        assert len(threads) == 1
        with pytest.raises(StoreUnavailable):
            await database.read(lambda connection: connection.execute(text("DELETE FROM jobs")))
        mode = text("PRAGMA journal_mode")
        assert await database.read(lambda connection: connection.scalar(mode)) == "wal"


# -- measured times --------------------------------------------------------------------------------


async def test_measured_times_come_back_newest_last(database: Database) -> None:
    timings = Timings(database)
    some = [
        Timing("sketch", 64, 64, steps, "cpu", "generating", "", [0.5, steps]) for steps in (1, 2)
    ]
    await timings.save(some)
    await timings.save([])
    newer = msgspec.structs.replace(some[0], samples=[1.5])
    await timings.save([newer])
    assert await timings.load() == [some[1], newer]


async def test_only_so_many_kinds_of_work_are_remembered(database: Database) -> None:
    timings = Timings(database)
    many = [
        Timing("sketch", 64, 64, steps, "cpu", "generating", "", [1.0]) for steps in range(5003)
    ]
    await timings.save(many[:3000])
    await timings.save(many[3000:])
    assert await timings.load() == many[3:]


# -- webhooks --------------------------------------------------------------------------------------


async def test_an_end_is_owed_to_a_webhook_until_it_is_settled(store: JobStore) -> None:
    old, told, untold, quiet = (make_job() for _ in range(4))
    unended = make_job()
    for job in (old, told, untold, unended):
        job.webhook = "https://hooks.example.com/x"
    for job in (old, told, untold, quiet, unended):
        await store.accept(job)
    assert await store.webhooks_due(0.0) == []

    for job in (old, told, untold, quiet):
        await finish(store, job)
    await store.webhook_settled(told.id)
    await store.webhook_settled("no such job")
    due = await store.webhooks_due(0.0)
    assert [job.id for job in due] == [old.id, untold.id]
    assert due[1] == await store.get(untold.id)
    assert due[1].ended

    assert [job.id for job in await store.webhooks_due(due[1].changed)] == [untold.id]
    assert [job.id for job in await store.webhooks_due(0.0)] == [
        untold.id
    ]  # the old one is forgotten


async def test_what_is_owed_of_a_job_goes_with_it(database: Database, store: JobStore) -> None:
    job = make_job()
    job.webhook = "https://hooks.example.com/x"
    await store.accept(job)
    await finish(store, job)
    await database.write(lambda connection: connection.execute(text("DELETE FROM jobs")))
    owed = text("SELECT count(*) FROM webhooks_due")
    assert await database.read(lambda connection: connection.scalar(owed)) == 0
