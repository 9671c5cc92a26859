"""Jobs and their events: numbered from 1 without gaps, replayed from any number, ended once.

Promised: whoever follows a job, whenever they come, sees every event above their number once, in
order, and then the end of the stream; the first end counts; old jobs go when newer ones have ended.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from app.domain.errors import NotFound
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
from app.domain.model_card import Defaults, ModelCard
from app.domain.request import Arguments
from app.job_board import JobBoard

CARD = ModelCard(id="m", family="fake", source="/", defaults=Defaults(sampler="euler"))
REQUEST = CARD.resolve(Arguments(prompt="a fox"), draw_seed=lambda: 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def board_keeping(keep: int) -> JobBoard:
    ids = iter(f"job-{number:03}" for number in range(1000))
    return JobBoard(keep=keep, clock=Clock(), new_id=lambda: next(ids))


def open_job(board: JobBoard) -> str:
    return board.open(REQUEST, owner="me", door="jobs").id


def step(number: int) -> JobEvent:
    return Progressed("generating", number, number / 100, 1.0, "", number, 100)


async def collect(board: JobBoard, job_id: str, after: int = 0) -> list[NumberedEvent]:
    async with asyncio.timeout(5):
        return [event async for event in board.follow(job_id, after)]


def numbers(events: list[NumberedEvent]) -> list[int]:
    return [event.number for event in events]


async def test_events_are_numbered_from_one_without_gaps_and_stamped() -> None:
    board = board_keeping(10)
    job_id = open_job(board)
    sent: list[JobEvent] = [Queued(1, 2.0, "r"), Started("w", 1), step(1), step(2), Succeeded()]
    for event in sent:
        board.publish(job_id, event)
    seen = await collect(board, job_id)
    assert numbers(seen) == [1, 2, 3, 4, 5]
    assert [event.event for event in seen] == sent
    assert [event.timestamp for event in seen] == [1002.0, 1003.0, 1004.0, 1005.0, 1006.0]


@pytest.mark.parametrize("after", [-5, 0, 1, 3, 4, 5, 99])
async def test_a_follower_may_begin_after_any_number(after: int) -> None:
    board = board_keeping(10)
    job_id = open_job(board)
    for number in range(1, 5):
        board.publish(job_id, step(number))
    board.publish(job_id, Succeeded())
    assert numbers(await collect(board, job_id, after)) == list(range(max(0, after) + 1, 6))


async def test_followers_that_come_early_late_and_in_between_all_see_the_same() -> None:
    board = board_keeping(10)
    job_id = open_job(board)
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
async def test_no_order_of_turns_loses_or_doubles_an_event(seed: int) -> None:
    """Followers that are slow, in bursts or resume half-way, against a publisher in bursts."""
    dice = random.Random(seed)
    board = board_keeping(10)
    job_id = open_job(board)

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


async def test_a_follower_waits_for_news_and_gets_them_at_once() -> None:
    board = board_keeping(10)
    job_id = open_job(board)
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
    first: JobEvent, second: JobEvent
) -> None:
    board = board_keeping(10)
    job_id = open_job(board)
    board.publish(job_id, first)
    status, changed = board.get(job_id).status, board.get(job_id).changed
    board.publish(job_id, second)
    board.publish(job_id, step(1))
    assert [event.event for event in await collect(board, job_id)] == [first]
    assert (board.get(job_id).status, board.get(job_id).changed) == (status, changed)


async def test_an_event_changes_the_job_before_followers_see_it() -> None:
    board = board_keeping(10)
    job_id = open_job(board)
    board.publish(job_id, Started("w", 1))
    async for numbered in board.follow(job_id):
        if isinstance(numbered.event, Succeeded):
            assert board.get(job_id).ended
        else:
            assert board.get(job_id).status == "running"
            board.publish(job_id, Succeeded())


async def test_jobs_do_not_hear_of_each_other() -> None:
    board = board_keeping(10)
    one, two = open_job(board), open_job(board)
    board.publish(one, Succeeded())
    board.publish(two, step(1))
    board.publish(two, Succeeded())
    assert numbers(await collect(board, one)) == [1]
    assert numbers(await collect(board, two)) == [1, 2]


def test_jobs_are_listed_newest_first() -> None:
    board = board_keeping(10)
    ids = [open_job(board) for _ in range(3)]
    assert [job.id for job in board.jobs()] == ids[::-1]
    assert board.get(ids[0]).owner == "me"


def test_an_ended_job_is_kept_until_enough_newer_ones_have_ended() -> None:
    board = board_keeping(2)
    ids = [open_job(board) for _ in range(4)]
    for job_id in ids[1:]:
        board.publish(job_id, Succeeded())
    assert [job.id for job in board.jobs()] == [ids[3], ids[2], ids[0]]  # the first still waits
    board.publish(ids[0], Succeeded())
    assert [job.id for job in board.jobs()] == [ids[3], ids[0]]


async def test_a_follower_reads_to_the_end_though_the_job_is_dropped_meanwhile() -> None:
    board = board_keeping(1)
    job_id = open_job(board)
    board.publish(job_id, step(1))
    follower = board.follow(job_id)
    assert (await anext(follower)).number == 1
    board.publish(job_id, Succeeded())
    board.publish(open_job(board), Succeeded())
    with pytest.raises(NotFound):
        board.get(job_id)
    assert [event.number async for event in follower] == [2]


async def test_what_is_not_there_is_not_found() -> None:
    board = board_keeping(1)
    with pytest.raises(NotFound) as caught:
        board.get("nobody")
    assert (caught.value.code, caught.value.param) == ("not_found", "id")
    with pytest.raises(NotFound):
        await collect(board, "nobody")
    board.publish("nobody", Succeeded())  # events of a job that is gone are dropped


async def test_previews_are_forgotten_when_newer_jobs_have_ended() -> None:
    board = board_keeping(100)
    first = open_job(board)
    board.publish(first, Progressed("generating", 50, 0.5, 1.0, "", 1, 2, preview=b"picture"))
    board.publish(first, Succeeded())
    for _ in range(15):
        board.publish(open_job(board), Succeeded())
    kept = [numbered.event for numbered in await collect(board, first)]
    board.publish(open_job(board), Succeeded())
    bare = [numbered.event for numbered in await collect(board, first)]
    assert [getattr(event, "preview", None) for event in kept] == [b"picture", None]
    assert [getattr(event, "preview", None) for event in bare] == [None, None]
    assert len(bare) == 2
