"""The k-th statement, commit, write or rename fails, for every k in turn: promises hold all the same.

A day in the life of the store is lived once without faults, to count them, and then once for each; the
process "crashes" after the fault or goes on, and what it left is looked at by a store of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, exc, text

from app.domain.errors import Unavailable
from app.domain.events import TERMINAL, NumberedEvent
from app.domain.job import Job
from app.store import blobs as blobs_module
from app.store.blobs import Folder
from app.store.database import Database
from app.store.history import History, Wanted
from app.store.jobs import JobStore, News
from app.store.pictures import PictureStore, StoredImage
from tests.postgres import Server
from tests.stored import Teller, make_job, new_id, png


class Fault:
    """Counts points where something can fail, and fails at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.seen = 0
        self.fired = False

    def point(self) -> bool:
        """Whether it is here that it fails."""
        self.seen += 1
        here = self.seen == self.at
        self.fired = self.fired or here
        return here


def broken() -> exc.OperationalError:
    return exc.OperationalError("injected", {}, OSError("disk I/O error"))


def break_statements(database: Database, fault: Fault) -> None:
    def before(*_: object) -> None:
        if fault.point():
            raise broken()

    event.listen(database.writer, "before_cursor_execute", before)


def break_commits(database: Database, fault: Fault) -> None:
    def before(_: object) -> None:
        if fault.point():
            raise broken()

    event.listen(database.writer, "commit", before)


def break_answers(database: Database, fault: Fault) -> None:
    """The commit succeeds, and nobody gets to know of it."""
    dialect: Any = database.writer.dialect
    commit = dialect.do_commit

    def do_commit(connection: object) -> None:
        commit(connection)
        if fault.point():
            raise broken()

    dialect.do_commit = do_commit


class FaultyOs:
    """`os`, whose calls that change a disk fail at one point."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in {"open", "write", "fsync", "replace", "makedirs", "unlink", "utime"}:
            return real

        def call(*given: Any, **more: Any) -> Any:
            if self._fault.point():
                if name == "write":
                    real(given[0], bytes(given[1])[:3])  # half of it arrives
                raise OSError(errno.ENOSPC, "injected")
            return real(*given, **more)

        return call


class Day:
    """What a gateway does with its store, and what it was promised meanwhile."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.store = JobStore(database)
        self.pictures = PictureStore(database, Folder(folder), memory_bytes=1)
        self.history = History(database, self.pictures)
        self.accepted: list[Job] = []
        self.refused: list[Job] = []
        self.told: list[News] = []
        self.deleted: set[str] = set()

    async def live(self) -> None:
        await self.pictures.open()
        jobs = [make_job(f"red cube {number}", image=b"in" * 50) for number in range(4)]
        await asyncio.gather(*(self.accept(job) for job in jobs[:2]))
        for job in jobs[2:]:
            await self.accept(job)
        tellers = {job.id: Teller(job) for job in self.accepted}
        for job in self.accepted[:-1]:
            teller = tellers[job.id]
            await self.tell(teller.beginning())
            image = StoredImage(png(content=job.id.encode()), "image/png")
            picture = await self.pictures.put(new_id(), 0, 7, image)
            await self.tell([teller.picture(picture), teller.ending()])
        for act in (self.mark, self.delete, self.sweep):
            await self.patiently(act)
        await self.pictures.close()

    async def accept(self, job: Job) -> None:
        try:
            await self.store.accept(job)
        except Unavailable:
            self.refused.append(job)
        else:
            self.accepted.append(job)

    async def tell(self, news: list[News]) -> None:
        """Events are held until the store takes them; then they are shown."""

        async def act() -> None:
            assert await self.store.append(news) == [True] * len(news)

        await self.patiently(act)
        self.told += news

    async def mark(self) -> None:
        await self.history.tag(self.accepted[0].id, "cubes")

    async def delete(self) -> None:
        job = self.accepted[0]
        if await self.store.get(job.id):
            self.deleted.add(job.id)
            await self.history.delete(job.id)

    async def sweep(self) -> None:
        await self.pictures.sweep()

    async def patiently(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except Unavailable:
            if act == self.delete and not await self.history.list(Wanted(words="red cube 0")):
                return
            try:
                await act()
            except Exception:
                if act != self.delete:  # it is gone already
                    raise


async def look(day: Day, database: Database, folder: Path) -> None:
    """Everything that was promised, seen by another process."""
    assert await database.check() == []
    store = JobStore(database)
    pictures = PictureStore(database, Folder(folder), memory_bytes=1, clock=lambda: 4e9)
    history = History(database, pictures)
    listed = {past.job.id: past for past in (await history.list(limit=1000)).jobs}
    for job in day.accepted:
        assert job.id in listed or job.id in day.deleted, "an accepted job is lost"
    known = {job.id for job in (*day.accepted, *day.refused)}
    assert set(listed) <= known
    found = await history.list(Wanted(words="red cube"), limit=1000)
    assert {past.job.id for past in found.jobs} == set(listed), "the index is another"
    shown: dict[str, list[NumberedEvent]] = {}
    for news in day.told:
        shown.setdefault(news.job_id, []).append(news.event)
    for job in (*day.accepted, *day.refused):
        if job.id not in listed:
            continue
        events = await store.events(job.id)
        assert [one.number for one in events] == list(range(1, len(events) + 1))
        assert events[: len(shown.get(job.id, []))] == shown.get(job.id, []), (
            "a shown event is lost"
        )
        ends = [one for one in events if isinstance(one.event, TERMINAL)]
        stored = await store.get(job.id)
        assert len(ends) == stored.ended
        assert ends == events[-1:] if ends else True
        mirror = Job(id=job.id, owner=job.owner, door=job.door, created=job.created,
                     request=job.request.without_pictures(), changed=job.created)  # fmt: skip
        for one in events:
            mirror.apply(one)
        assert stored == mirror, "the row is not what its events make of it"
        assert (await store.with_inputs(job.id)).request.image == b"in" * 50
    await pictures.open()
    swept = await pictures.sweep()
    assert swept.missing == [], "a row without a file"
    there = {blob.name[3:67] async for page in Folder(folder).pages() for blob in page
             if "/" in blob.name}  # fmt: skip
    rows = [row for past in listed.values() for row in past.pictures if row.state == "stored"]
    assert there == {row.digest for row in rows}, "rows and files differ"
    for row in rows:
        assert (await pictures.get(row.id)).media_type == "image/png"
    await pictures.close()


KINDS: dict[str, Callable[[Database, Fault], None]] = {
    "statement": break_statements,
    "commit": break_commits,
    "answer": break_answers,
}


class Stage:
    """A new, empty database and picture folder for every day."""

    def __init__(self, folder: Path, server: Server | None) -> None:
        self._folder = folder
        self._server = server
        self._url = server.fresh() if server else ""
        self._day = 0

    async def set(self) -> tuple[str, Path]:
        self._day += 1
        pictures = self._folder / f"pictures-{self._day}"
        if self._server:
            async with await Database.open(self._url) as database:
                await database.write(
                    lambda connection: connection.execute(text("TRUNCATE jobs CASCADE")).rowcount
                )
            return self._url, pictures
        template = self._folder / "template.db"
        if not template.exists():
            await (await Database.open(f"sqlite:///{template}")).close()
        shutil.copy(template, self._folder / f"{self._day}.db")
        return f"sqlite:///{self._folder / f'{self._day}.db'}", pictures


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    return Stage(tmp_path, server)


async def one_day(stage: Stage, kind: str, fault: Fault) -> Day:
    url, folder = await stage.set()
    async with await Database.open(url) as database:
        KINDS[kind](database, fault)
        day = Day(database, folder)
        await day.live()
    async with await Database.open(url) as database:
        await look(day, database, folder)
    return day


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["sqlite", "postgresql"], indirect=True)
async def test_the_kth_fault_of_the_database_breaks_no_promise(stage: Stage, kind: str) -> None:
    counted = Fault(None)
    day = await one_day(stage, kind, counted)
    assert len(day.accepted) == 4
    assert counted.seen >= 10
    fired = 0
    for k in range(1, counted.seen + 1):
        fault = Fault(k)
        await one_day(stage, kind, fault)
        fired += fault.fired
    assert fired >= counted.seen - 1


@pytest.mark.timeout(600)
async def test_the_kth_fault_of_the_disk_breaks_no_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, counted = Stage(tmp_path, None), Fault(None)

    async def live(fault: Fault) -> None:
        url, folder = await stage.set()
        async with await Database.open(url) as database:
            day = Day(database, folder)
            with monkeypatch.context() as patched:
                patched.setattr(blobs_module, "os", FaultyOs(fault))
                await day.live()
        assert len(day.accepted) == 4
        async with await Database.open(url) as database:
            await look(day, database, folder)

    await live(counted)
    assert counted.seen >= 15
    fired = 0
    for k in range(1, counted.seen + 1):
        fault = Fault(k)
        await live(fault)
        fired += fault.fired
    assert fired >= counted.seen - 1
