"""What was drawn: lists, search, marks, deletion, limits and statistics, on both databases."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import InvalidRequest, NotFound
from app.domain.events import Failed, JobCancelled, JobEvent
from app.domain.job import Job
from app.store.blobs import Folder
from app.store.database import Database
from app.store.history import History, Limits, Wanted
from app.store.jobs import JobStore, Picture
from app.store.pictures import PictureStore, StoredImage
from app.store.statistics import Statistics
from app.store.words import words_of
from tests.stored import NOON, finish, make_job, new_id, png


class House:
    """A database, its pictures, and jobs in it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.jobs = JobStore(database)
        self.pictures = PictureStore(database, Folder(folder), memory_bytes=1)
        self.history = History(database, self.pictures)

    async def draw(
        self,
        prompt: str = "a red cube",
        end: JobEvent | None = None,
        *,
        size: int = 0,
        **given: Any,
    ) -> Job:
        """A job that has ended; with `size`, it drew a picture of so many bytes of its own."""
        seconds = given.pop("seconds", 2.0)
        job = make_job(prompt, **given)
        await self.jobs.accept(job)
        picture = await self.paint(png(content=job.id.encode().ljust(size))) if size else None
        await finish(self.jobs, job, end, seconds=seconds, picture=picture)
        return job

    async def paint(self, data: bytes) -> Picture:
        return await self.pictures.put(new_id(), 0, 7, StoredImage(data, "image/png"))

    async def ids(self, wanted: Wanted | None = None) -> list[str]:
        page = await self.history.list(wanted, limit=1000)
        assert page.cursor is None
        return [past.job.id for past in page.jobs]

    async def found(self, words: str) -> list[str]:
        page = await self.history.list(Wanted(words=words))
        return [past.job.request.prompt for past in page.jobs]

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*.*") if path.is_file()]


def files_of(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with await Database.open(database_url) as database:
        house = House(database, tmp_path / "pictures")
        await house.pictures.open()
        yield house
        await house.pictures.close()


# -- lists -----------------------------------------------------------------------------------------


async def test_pages_are_newest_first_and_neither_skip_nor_repeat(house: House) -> None:
    jobs = [await house.draw(f"number {number}") for number in range(7)]
    page = await house.history.list(limit=3)
    seen = [past.job.id for past in page.jobs]
    while page.cursor is not None:
        await house.draw("came in meanwhile")
        page = await house.history.list(limit=3, cursor=page.cursor)
        seen += [past.job.id for past in page.jobs]
    assert seen == [job.id for job in reversed(jobs)]
    exact = await house.history.list(Wanted(words="number"), limit=7)
    assert len(exact.jobs) == 7
    assert exact.cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "9" * 30, "²", "1;drop"])
async def test_a_cursor_that_is_none_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await house.history.list(cursor=cursor)
    assert refused.value.param == "cursor"


async def test_filters_hold_together(house: House) -> None:
    one = await house.draw(model="flux", owner="bert", width=512, created=NOON - 50)
    two = await house.draw("a blue cube", Failed("x", "y"), model="flux", created=NOON - 40)
    three = make_job(created=NOON - 30)
    await house.jobs.accept(three)
    for wanted, expected in (
        (Wanted(), [three, two, one]),
        (Wanted(model="flux"), [two, one]),
        (Wanted(model="flux", status="failed"), [two]),
        (Wanted(status="queued"), [three]),
        (Wanted(owner="bert"), [one]),
        (Wanted(size="512x64"), [one]),
        (Wanted(since=NOON - 40), [three, two]),
        (Wanted(until=NOON - 40), [one]),
        (Wanted(since=NOON - 45, until=NOON - 35, door="jobs", words="BLUE"), [two]),
        (Wanted(words="cube", owner="bert"), [one]),
        (Wanted(door="a1111"), []),
        (Wanted(owner="\0", tag="\0", model="'; --"), []),
        (Wanted(favourite=True), []),
    ):
        assert await house.ids(wanted) == [job.id for job in expected], wanted


async def test_one_job_with_all_that_is_known_of_it(house: House) -> None:
    job = await house.draw(size=300)
    await house.history.tag(job.id, "cubes")
    past = await house.history.get(job.id)
    assert past.job == await house.jobs.get(job.id)
    assert past.tags == ["cubes"]
    assert [(one.bytes, one.width, one.height, one.state) for one in past.pictures] == [
        (len(png()) + 300, 64, 64, "stored")
    ]
    with pytest.raises(NotFound):
        await house.history.get(new_id())


# -- search ----------------------------------------------------------------------------------------

PROMPTS = (
    "A Red Cube on a table",
    "a café by the sea, 35mm",
    "Straße in Köln",
    "赤い立方体と海",
    "best_quality, red/blue (cube:1.2)",
    "Ёлка в лесу",
)


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("red", [4, 0]),
        ("RED cube", [4, 0]),
        ("cube red table", [0]),
        ("tab", [0]),
        ("able", []),
        ("cafe", [1]),
        ("CAFÉ sea", [1]),
        ("35", [1]),
        ("STRASSE", [2]),
        ("koln", [2]),
        ("立方", [3]),
        ("海", [3]),
        ("海山", []),
        ("quality", [4]),
        ("best_quality", [4]),
        ("blue", [4]),
        ("1.2", [4]),
        ("елка", [5]),
        ("   ", [5, 4, 3, 2, 1, 0]),
        ("!!!", []),
        ("a OR b", []),
        ('red" OR "sea', []),
        ("words:red", []),
        ("NEAR(red cube)", []),
        ("red & '", [4, 0]),
        ("red & !sea | '", []),
        ("cube*", [4, 0]),
        ("a\0b", [1]),
    ],
)
async def test_search_finds_beginnings_of_words(
    house: House, words: str, places: list[int]
) -> None:
    for prompt in PROMPTS:
        await house.jobs.accept(make_job(prompt))
    assert await house.found(words) == [PROMPTS[place] for place in places]


def test_words_are_spelled_alike_however_they_are_written() -> None:
    assert words_of("Cafe\u0301 CAFÉ ｃａｆｅ") == ["cafe"] * 3
    assert words_of("한글 ﬁne") == ["한", "글", "fine"]
    assert words_of("...") == []


async def test_search_goes_on_from_a_cursor(house: House) -> None:
    for number in range(6):
        await house.jobs.accept(make_job(f"{'red' if number % 2 else 'blue'} cube {number}"))
    page = await house.history.list(Wanted(words="red"), limit=2)
    assert [past.job.request.prompt[-1] for past in page.jobs] == ["5", "3"]
    page = await house.history.list(Wanted(words="red"), limit=2, cursor=page.cursor)
    assert [past.job.request.prompt[-1] for past in page.jobs] == ["1"]
    assert page.cursor is None


# -- marks -----------------------------------------------------------------------------------------


async def test_favourites_and_tags_are_set_found_and_taken_back(house: House) -> None:
    liked, other = await house.draw(size=9), await house.draw(size=9)
    image_id = (await house.history.get(liked.id)).pictures[0].id
    await house.history.favourite(image_id)
    for _ in range(2):
        await house.history.tag(other.id, " cubes ")
    await house.history.tag(other.id, "absurd")
    assert await house.ids(Wanted(favourite=True)) == [liked.id]
    assert (await house.history.get(liked.id)).pictures[0].favourite
    assert await house.ids(Wanted(tag="cubes")) == [other.id]
    assert (await house.history.get(other.id)).tags == ["absurd", "cubes"]
    await house.history.favourite(image_id, on=False)
    await house.history.tag(other.id, "cubes", on=False)
    assert await house.ids(Wanted(favourite=True)) == await house.ids(Wanted(tag="cubes")) == []


@pytest.mark.parametrize("tag", ["", "  ", "x" * 65, "a\nb", "a\0b"])
async def test_what_is_no_tag_is_refused(house: House, tag: str) -> None:
    job = await house.draw()
    with pytest.raises(InvalidRequest):
        await house.history.tag(job.id, tag)


async def test_marks_on_nothing_are_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        await house.history.tag(new_id(), "cubes")
    with pytest.raises(NotFound):
        await house.history.favourite(new_id())


# -- deletion and limits ---------------------------------------------------------------------------


async def test_what_is_deleted_is_gone_everywhere(house: House) -> None:
    job, other = await house.draw("a purple cube", size=50), await house.draw("a cube", size=50)
    image_id = (await house.history.get(job.id)).pictures[0].id
    await house.history.tag(job.id, "cubes")
    await house.history.delete(job.id)
    assert await house.ids() == [other.id]
    assert await house.found("purple") == []
    for ask in (house.jobs.get, house.jobs.events, house.history.get, house.history.delete):
        with pytest.raises(NotFound):
            await ask(job.id)
    with pytest.raises(NotFound):
        await house.pictures.get(image_id)
    assert len(house.files()) == 1
    assert await house.database.check() == []


async def test_a_job_that_has_not_ended_is_not_deleted(house: House) -> None:
    await house.jobs.accept(job := make_job())
    with pytest.raises(InvalidRequest):
        await house.history.delete(job.id)
    assert await house.ids() == [job.id]


async def test_a_picture_that_another_job_drew_as_well_stays(house: House) -> None:
    jobs = []
    for _ in range(2):
        await house.jobs.accept(job := make_job())
        await finish(house.jobs, job, picture=await house.paint(png(content=b"the same")))
        jobs.append(job)
    assert len(house.files()) == 1
    await house.history.delete(jobs[0].id)
    kept = (await house.history.get(jobs[1].id)).pictures[0]
    assert (await house.pictures.get(kept.id)).data == png(content=b"the same")
    await house.history.delete(jobs[1].id)
    assert house.files() == []


async def test_one_picture_is_deleted_and_its_job_stays(house: House) -> None:
    job = await house.draw(size=900)
    picture = (await house.history.get(job.id)).pictures[0]
    await house.pictures.delete(picture.id)
    assert (await house.history.get(job.id)).pictures[0].state == "deleted"
    assert house.files() == []
    for ask in (house.pictures.get, house.pictures.delete):
        with pytest.raises(NotFound):
            await ask(picture.id)
    assert await house.history.retain(Limits(bytes=100), NOON) == 0, "its bytes do not count now"


async def test_an_owner_s_data_are_deleted_to_the_last_byte(house: House, tmp_path: Path) -> None:
    for number in range(12):
        await house.draw(f"zebrafish {number}", size=40, owner="carl", image=b"narwhal" * 9)
    mine = await house.draw("a cube", size=40)
    running = make_job("zebrafish running", owner="carl")
    await house.jobs.accept(running)
    assert await house.history.delete_owner("carl") == 13
    assert await house.history.delete_owner("carl") == 0
    assert await house.ids() == [mine.id]
    assert len(house.files()) == 1
    assert await house.database.check() == []
    await house.database.close()
    kept = b"".join(path.read_bytes() for path in files_of(tmp_path, "easel.db*"))
    assert b"zebrafish" not in kept
    assert b"narwhal" not in kept


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(), [0, 1, 2, 3, 4, 5]),
        (Limits(seconds=100), [0, 1, 4, 5]),
        (Limits(jobs=3), [0, 1, 3, 4, 5]),
        (Limits(jobs_of_owner=2), [0, 1, 2, 3, 4, 5]),
        (Limits(jobs_of_owner=1), [0, 1, 4, 5]),
        (Limits(bytes=2500), [0, 1, 4, 5]),
        (Limits(bytes_of_owner=1500), [0, 1, 4, 5]),
        (Limits(jobs=6, bytes=10**6, seconds=10**6), [0, 1, 2, 3, 4, 5]),
        (Limits(jobs=0), [0, 1]),
        (Limits(jobs=1, seconds=100), [0, 1, 5]),
    ],
)
async def test_limits_remove_the_oldest_but_no_favourite_and_nothing_that_runs(
    house: House, limits: Limits, kept: list[int]
) -> None:
    jobs = [await house.draw("liked", size=900, created=NOON - 1000)]
    await house.history.favourite((await house.history.get(jobs[0].id)).pictures[0].id)
    jobs.append(make_job("runs", created=NOON - 900))
    await house.jobs.accept(jobs[1])
    for owner, age in (("anna", 800), ("bert", 700), ("anna", 20), ("bert", 10)):
        jobs.append(await house.draw(owner=owner, size=900, created=NOON - age))
    removed = await house.history.retain(limits, NOON)
    assert await house.ids() == [jobs[place].id for place in reversed(kept)]
    assert removed == 6 - len(kept)
    assert await house.history.retain(limits, NOON) == 0
    assert len(house.files()) == len(kept) - 1


# -- statistics ------------------------------------------------------------------------------------


async def test_statistics_are_those_of_the_stored_jobs(house: House) -> None:
    rng = random.Random(5)
    seconds = {64: [], 128: []}  # type: dict[int, list[float]]
    for number in range(30):
        width = 64 if number % 3 else 128
        took = rng.choice([1.0, 2.0, 3.5, 8.0])
        await house.draw(width=width, seconds=took, created=NOON + number)
        seconds[width].append(took)
    await house.draw(end=Failed("x", "y"), owner="bert", created=NOON + 86_400)
    await house.draw(end=JobCancelled(), owner="bert", created=NOON + 86_400)
    await house.jobs.accept(make_job(created=NOON + 86_401))
    report = await Statistics(house.database).report()
    assert [(one.model, one.size) for one in report.generation] == [
        ("sketch", "128x64"),
        ("sketch", "64x64"),
    ]
    for one, width in zip(report.generation, (128, 64), strict=True):
        ranked = sorted(seconds[width])
        n = len(ranked)
        assert one.seconds.n == n
        assert one.seconds.min == ranked[0]
        assert one.seconds.max == ranked[-1]
        assert one.seconds.mean == pytest.approx(statistics.mean(ranked))
        assert one.seconds.p50 == ranked[math.ceil(n * 0.5) - 1]
        assert one.seconds.p95 == ranked[math.ceil(n * 0.95) - 1]
    assert report.statuses == {"succeeded": 30, "failed": 1, "cancelled": 1, "queued": 1}
    assert report.success_rate == 30 / 31
    assert report.waits is not None
    assert (report.waits.n, report.waits.p95) == (32, 2.0)
    assert [(one.day, one.owner, one.jobs, one.succeeded, one.failed, one.cancelled)
            for one in report.days] == [
        ("2026-11-22", "anna", 1, 0, 0, 0),
        ("2026-11-22", "bert", 2, 0, 1, 1),
        ("2026-11-21", "anna", 30, 30, 0, 0),
    ]  # fmt: skip


async def test_statistics_of_some_and_of_none(house: House) -> None:
    await house.draw(created=NOON - 10)
    await house.draw(owner="bert", created=NOON)
    report = await Statistics(house.database).report(owner="bert")
    assert report.statuses == {"succeeded": 1}
    assert (await Statistics(house.database).report(since=NOON)).statuses == {"succeeded": 1}
    nothing = await Statistics(house.database).report(owner="carl")
    assert nothing.generation == []
    assert nothing.days == []
    assert nothing.success_rate is None
    assert nothing.waits is None
