"""Jobs and their events: numbered from 1 without gaps, replayed from any number, ended once.

Promised: whoever follows a job, whenever they come, sees every event above their number once, in
order, and then the end of the stream, also in another process; the first end counts; nothing is seen
before it is stored, unless the store fails.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from app.domain.errors import NotFound, ShuttingDown
from app.domain.events import (
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
from app.domain.model_card import Defaults, ModelCard
from app.domain.request import Arguments
from app.job_board import JobBoard
from app.store.database import Database
from app.store.errors import StorageFull, StoreUnavailable
from app.store.jobs import JobStore, News

CARD = ModelCard(id="m", family="fake", source="/", defaults=Defaults(sampler="euler"))
REQUEST = CARD.resolve(Arguments(prompt="a fox"), draw_seed=lambda: 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Store(JobStore):
    """A real one, that fails when it is told to and counts what it took in."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.failing: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.stored: list[News] = []

    async def append(self, news: Sequence[News]) -> list[bool]:
        if self.hold is not None:
            await self.hold.wait()
        if self.failing is not None:
            raise self.failing
        counts = await super().append(news)
        self.stored += news
        return counts


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        yield Store(database)


@pytest.fixture
async def board(store: Store) -> AsyncIterator[JobBoard]:
    opened = make_board(store)
    yield opened
    store.failing, store.hold = None, None
    await opened.close()


_IDS = iter(f"job-{number:06}" for number in range(1_000_000))


def make_board(store: Store) -> JobBoard:
    return JobBoard(store, clock=Clock(), new_id=lambda: next(_IDS))


async def open_job(board: JobBoard) -> str:
    return (await board.open(REQUEST, owner="me", door="jobs")).id


def step(number: int) -> JobEvent:
    return Progressed("generating", number, number / 100, 1.0, "", number, 100)


async def collect(board: JobBoard, job_id: str, after: int = 0) -> list[NumberedEvent]:
    async with asyncio.timeout(5):
        return [event async for event in board.follow(job_id, after)]


def numbers(events: list[NumberedEvent]) -> list[int]:
    return [event.number for event in events]


async def test_events_are_numbered_from_one_without_gaps_and_stamped(board: JobBoard) -> None:
    job_id = await open_job(board)
    sent: list[JobEvent] = [Queued(1, 2.0, "r"), Started("w", 1), step(1), step(2), Succeeded()]
    for event in sent:
        board.publish(job_id, event)
    seen = await collect(board, job_id)
    assert numbers(seen) == [1, 2, 3, 4, 5]
    assert [event.event for event in seen] == sent
    assert [event.timestamp for event in seen] == [1002.0, 1003.0, 1004.0, 1005.0, 1006.0]


@pytest.mark.parametrize("after", [-5, 0, 1, 3, 4, 5, 99])
async def test_a_follower_may_begin_after_any_number(board: JobBoard, after: int) -> None:
    job_id = await open_job(board)
    for number in range(1, 5):
        board.publish(job_id, step(number))
    board.publish(job_id, Succeeded())
    assert numbers(await collect(board, job_id, after)) == list(range(max(0, after) + 1, 6))


async def test_followers_that_come_early_late_and_in_between_all_see_the_same(
    board: JobBoard,
) -> None:
    job_id = await open_job(board)
    followers = [asyncio.create_task(collect(board, job_id))]
    for number in range(1, 60):
        followers.append(asyncio.create_task(collect(board, job_id)))
        board.publish(job_id, step(number))
        if number % 3:
            await asyncio.sleep(0)
    board.publish(job_id, Succeeded())
    followers.append(asyncio.create_task(collect(board, job_id)))
    for follower in followers:
        assert numbers(await follower) == list(range(1, 61))


@pytest.mark.parametrize("seed", range(20))
async def test_no_order_of_turns_loses_or_doubles_an_event(board: JobBoard, seed: int) -> None:
    """Followers that are slow, in bursts or resume half-way, against a publisher in bursts."""
    dice = random.Random(seed)
    job_id = await open_job(board)

    async def slow_follower(after: int) -> list[int]:
        seen: list[int] = []
        while True:
            async for event in board.follow(job_id, after + len(seen)):
                seen.append(event.number)
                for _ in range(dice.randrange(3)):
                    await asyncio.sleep(0)
                if dice.random() < 0.1:
                    break  # the line is cut; resume where it was
            else:
                return seen

    async def publisher() -> None:
        for number in range(1, 80):
            board.publish(job_id, step(number))
            for _ in range(dice.choice([0, 0, 1, 4])):
                await asyncio.sleep(0)
        board.publish(job_id, Succeeded())

    async with asyncio.timeout(5):
        *seen, _ = await asyncio.gather(
            *(slow_follower(after) for after in (0, 0, 1, 40, 79)), publisher()
        )
    starts = (1, 1, 2, 41, 80)
    assert seen == [list(range(start, 81)) for start in starts]


async def test_a_follower_waits_for_news_and_gets_them_at_once(board: JobBoard) -> None:
    job_id = await open_job(board)
    follower = board.follow(job_id)
    board.publish(job_id, step(1))
    assert (await anext(follower)).number == 1
    coming = asyncio.ensure_future(anext(follower))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not coming.done()
    board.publish(job_id, step(2))
    assert (await asyncio.wait_for(coming, 1)).number == 2


@pytest.mark.parametrize("first", [Succeeded(), Failed("out_of_memory", "No."), JobCancelled()])
@pytest.mark.parametrize("second", [Succeeded(), Failed("internal_error", "?"), JobCancelled()])
async def test_the_first_end_counts_and_nothing_follows_it(
    board: JobBoard, first: JobEvent, second: JobEvent
) -> None:
    job_id = await open_job(board)
    board.publish(job_id, first)
    board.publish(job_id, second)
    board.publish(job_id, step(1))
    assert [event.event for event in await collect(board, job_id)] == [first]
    job = await board.get(job_id)
    assert (job.ended, job.last_event, job.changed) == (True, 1, 1002.0)


async def test_an_event_changes_the_job_before_followers_see_it(board: JobBoard) -> None:
    job_id = await open_job(board)
    board.publish(job_id, Started("w", 1))
    async for numbered in board.follow(job_id):
        if isinstance(numbered.event, Succeeded):
            assert (await board.get(job_id)).ended
        else:
            assert (await board.get(job_id)).status == "running"
            board.publish(job_id, Succeeded())


async def test_jobs_do_not_hear_of_each_other(board: JobBoard) -> None:
    one, two = await open_job(board), await open_job(board)
    board.publish(one, Succeeded())
    board.publish(two, step(1))
    board.publish(two, Succeeded())
    assert numbers(await collect(board, one)) == [1]
    assert numbers(await collect(board, two)) == [1, 2]


async def test_what_is_not_there_is_not_found(board: JobBoard) -> None:
    with pytest.raises(NotFound) as caught:
        await board.get("nobody")
    assert (caught.value.code, caught.value.param) == ("not_found", "id")
    with pytest.raises(NotFound):
        await collect(board, "nobody")
    board.publish("nobody", Succeeded())  # events of a job that is gone are dropped


async def test_previews_are_forgotten_when_newer_jobs_have_ended(board: JobBoard) -> None:
    async def end_one() -> None:
        job_id = await open_job(board)
        board.publish(job_id, Succeeded())
        await collect(board, job_id)

    first = await open_job(board)
    board.publish(first, Progressed("generating", 50, 0.5, 1.0, "", 1, 2, preview=b"picture"))
    board.publish(first, Succeeded())
    kept = [numbered.event for numbered in await collect(board, first)]
    for _ in range(16):
        await end_one()
    bare = [numbered.event for numbered in await collect(board, first)]
    assert [getattr(event, "preview", None) for event in kept] == [b"picture", None]
    assert [getattr(event, "preview", None) for event in bare] == [None, None]
    for _ in range(60):  # out of memory by now, but not out of the store
        await end_one()
    assert [one.event for one in await collect(board, first)] == bare
    assert (await board.get(first)).status == "succeeded"


# -- storing ---------------------------------------------------------------------------------------


async def test_a_job_is_stored_before_it_is_given_out(board: JobBoard, store: Store) -> None:
    job_id = await open_job(board)
    assert (await store.get(job_id)).status == "queued"


async def test_nothing_is_seen_before_it_is_stored(board: JobBoard, store: Store) -> None:
    job_id = await open_job(board)
    store.hold = asyncio.Event()
    board.publish(job_id, Started("w", 1))
    board.publish(job_id, Succeeded())
    coming = asyncio.ensure_future(collect(board, job_id))
    await asyncio.sleep(0.05)
    assert not coming.done()
    assert (await board.get(job_id)).status == "queued"
    store.hold.set()
    assert numbers(await coming) == [1, 2]
    assert [news.event for news in store.stored] == await collect(board, job_id)
    assert (await board.get(job_id)).status == "succeeded"


@pytest.mark.parametrize("failing", [StoreUnavailable("no"), StorageFull("full")])
async def test_who_waits_gets_an_answer_though_the_store_fails_and_it_is_stored_later(
    board: JobBoard, store: Store, failing: Exception
) -> None:
    job_id = await open_job(board)
    store.failing = failing
    board.publish(job_id, Started("w", 1))
    seen = [step(number) for number in range(1, 4)]
    for event in seen:
        board.publish(job_id, event)
    board.publish(job_id, Succeeded())
    assert numbers(await collect(board, job_id)) == [1, 2, 3, 4, 5]
    assert (await store.get(job_id)).status == "queued"
    store.failing = None
    async with asyncio.timeout(10):
        while (await store.get(job_id)).status != "succeeded":
            await asyncio.sleep(0.02)
    assert await store.events(job_id) == await collect(board, job_id)


async def test_a_store_that_hangs_does_not_hold_those_who_wait_for_long(
    board: JobBoard, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.job_board._PATIENCE", 0.1)
    job_id = await open_job(board)
    store.hold = asyncio.Event()
    board.publish(job_id, Succeeded())
    assert numbers(await collect(board, job_id)) == [1]


async def test_a_mistake_in_the_store_holds_nobody(board: JobBoard, store: Store) -> None:
    job_id = await open_job(board)
    store.failing = ZeroDivisionError()
    board.publish(job_id, Succeeded())
    assert numbers(await collect(board, job_id)) == [1]


async def test_the_end_stores_what_could_not_be_stored_before(
    board: JobBoard, store: Store
) -> None:
    job_id = await open_job(board)
    store.failing = StoreUnavailable("no")
    board.publish(job_id, Succeeded())
    await collect(board, job_id)
    store.failing = None
    await board.close()
    assert (await store.get(job_id)).status == "succeeded"


# -- another process -------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(8))
async def test_another_process_goes_on_with_the_numbers(
    board: JobBoard, store: Store, after: int
) -> None:
    job_id = await open_job(board)
    for event in (Queued(1, 1.0, "r"), Started("w", 1), step(1)):
        board.publish(job_id, event)
    await board.close()

    second = make_board(store)
    (job,) = await second.unfinished()
    assert (job.id, job.attempt, job.last_event) == (job_id, 1, 3)
    for event in (Started("w", 2), step(1), step(2), Succeeded()):
        second.publish(job_id, event)
    seen = await collect(second, job_id, after)
    assert numbers(seen) == list(range(after + 1, 8))
    await second.close()
    assert await collect(make_board(store), job_id, after) == seen  # and one that only reads


async def test_events_of_a_replaced_attempt_are_not_stored(board: JobBoard, store: Store) -> None:
    job_id = await open_job(board)
    board.publish(job_id, Started("w", 1))
    await board.close()
    late, second = board, make_board(store)
    await second.unfinished()
    second.publish(job_id, Started("w", 2))
    await second.close()
    late.publish(job_id, Succeeded())
    await late.close()
    assert (await store.get(job_id)).status == "running"


async def test_followers_are_let_go_when_the_process_ends_before_the_job(board: JobBoard) -> None:
    job_id = await open_job(board)
    board.publish(job_id, Started("w", 1))
    seen = []

    async def follow() -> None:
        async for numbered in board.follow(job_id):
            seen.append(numbered.number)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    await board.close()
    with pytest.raises(ShuttingDown):
        await following
    assert seen == [1]


async def test_a_forgotten_job_lets_its_followers_go(board: JobBoard) -> None:
    job_id = await open_job(board)
    board.publish(job_id, Started("w", 1))
    following = asyncio.create_task(collect(board, job_id))
    await asyncio.sleep(0.05)
    board.forget_owner("me")
    assert numbers(await following) == [1]
    assert board.going_on() == []


async def test_who_looks_on_hears_everything_and_holds_nobody_up(board: JobBoard) -> None:
    heard: list[tuple[str, int, str]] = []

    def observer(job: Job, numbered: NumberedEvent) -> None:
        heard.append((job.id, numbered.number, job.status))
        raise ZeroDivisionError

    board.observe(observer)
    job_id = await open_job(board)
    for event in (Started("w", 1), Succeeded()):
        board.publish(job_id, event)
    await collect(board, job_id)
    assert heard == [(job_id, 1, "running"), (job_id, 2, "succeeded")]


async def test_progress_that_nobody_follows_is_stored_together(
    board: JobBoard, store: Store
) -> None:
    job_id = await open_job(board)
    board.publish(job_id, Started("w", 1))
    for number in range(1, 6):
        board.publish(job_id, step(number))
        await asyncio.sleep(0.01)
    assert len(store.stored) < 6
    assert (await board.get(job_id)).step != 5
    async with asyncio.timeout(2):
        while (await board.get(job_id)).step != 5:
            await asyncio.sleep(0.01)
    assert len(store.stored) == 6


async def test_who_comes_to_follow_waits_for_nothing(board: JobBoard, store: Store) -> None:
    job_id = await open_job(board)
    board.publish(job_id, step(1))
    began = asyncio.get_running_loop().time()
    follower = board.follow(job_id)
    assert (await anext(follower)).number == 1
    for number in (2, 3, 4):
        board.publish(job_id, step(number))
        assert (await anext(follower)).number == number
    assert asyncio.get_running_loop().time() - began < 0.25


async def test_the_end_of_a_job_can_be_waited_for(board: JobBoard) -> None:
    job_id = await open_job(board)
    waiting = asyncio.create_task(board.ended(job_id))
    board.publish(job_id, step(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    board.publish(job_id, Succeeded())
    assert (await asyncio.wait_for(waiting, 1)).status == "succeeded"
    assert (await board.ended(job_id)).status == "succeeded"
    going = await open_job(board)
    left = asyncio.create_task(board.ended(going))
    await asyncio.sleep(0)
    await board.close()
    with pytest.raises(ShuttingDown):
        await left
