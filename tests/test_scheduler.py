"""What the scheduler promises, over real workers: order, forecasts, retries, one end for each job."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.domain.errors import QueueFull, ShuttingDown
from app.domain.events import (
    TERMINAL,
    Failed,
    ImageReady,
    JobEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job
from app.workers.budget import Budget
from app.workers.in_process import InProcessPool
from app.workers.local import LocalPool
from tests.house import POOLS, House, house


@pytest.fixture(params=sorted(POOLS))
async def drawn(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POOLS[request.param](("fake",))) as built:
        yield built


def progress(events: list[JobEvent]) -> list[Progressed]:
    return [event for event in events if isinstance(event, Progressed)]


async def test_a_job_goes_from_queue_to_picture(drawn: House) -> None:
    job = await drawn.submit(n=2)
    events = await drawn.events(job)

    assert isinstance(events[0], Queued)
    assert (events[0].position, events[0].eta_seconds > 0) == (1, True)
    assert isinstance(events[-1], Succeeded)
    assert sum(isinstance(event, TERMINAL) for event in events) == 1
    assert [event.index for event in events if isinstance(event, ImageReady)] == [0, 1]
    assert (job.status, job.progress, job.eta_seconds) == ("succeeded", 100.0, 0.0)
    for image in job.images.values():
        assert (await drawn.service.image(image.image_id)).data.startswith(b"\x89PNG")


async def test_time_left_never_grows_and_the_share_done_never_shrinks(drawn: House) -> None:
    blocker = await drawn.submit("lab/slow")
    told = await drawn.events(await drawn.submit("fake", steps=30))
    await drawn.service.wait(blocker.id)

    etas = [e.eta_seconds for e in told if isinstance(e, Queued | Progressed)]
    assert etas == sorted(etas, reverse=True)
    assert etas[0] > 0
    fractions = [event.fraction for event in progress(told)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


async def test_what_was_measured_makes_the_next_forecast_true(drawn: House) -> None:
    for _ in range(6):
        await drawn.service.wait((await drawn.submit("lab/slow")).id)
    job = await drawn.submit("lab/slow")
    first = next(iter(await drawn.events(job)))
    took = job.changed - job.created

    assert isinstance(first, Queued)
    assert first.eta_seconds == pytest.approx(took, rel=0.35)


async def test_waiting_jobs_know_their_place_and_move_up(drawn: House) -> None:
    jobs = await asyncio.gather(*(drawn.submit(steps=20) for _ in range(3)))
    told = [await drawn.events(job) for job in jobs]

    positions = [[e.position for e in events if isinstance(e, Queued)] for events in told]
    assert positions[0][0] == 1
    assert list(dict.fromkeys(positions[2])) == [2, 1]
    first_etas = [events[0].eta_seconds for events in told if isinstance(events[0], Queued)]
    assert first_etas == sorted(first_etas)


async def test_a_full_queue_refuses_and_says_when_to_come_back(drawn: House) -> None:
    running = await drawn.submit("lab/slow", steps=100)
    await drawn.until(running, lambda event: isinstance(event, Started))
    waiting = await asyncio.gather(*(drawn.submit() for _ in range(3)))
    with pytest.raises(QueueFull) as raised:
        await drawn.submit()
    assert 1 <= raised.value.retry_after <= 59
    assert len(await drawn.jobs()) == 4  # the refused one left no trace

    await drawn.service.cancel(running.id)
    for job in waiting:
        assert (await drawn.service.wait(job.id)).status == "succeeded"


async def test_a_cancelled_job_in_the_queue_leaves_it_at_once(drawn: House) -> None:
    running = await drawn.submit("lab/slow")
    waiting = await drawn.submit()
    await drawn.service.cancel(waiting.id)
    assert waiting.status == "cancelled"
    assert waiting.attempt == 0
    assert (await drawn.service.wait(running.id)).status == "succeeded"


async def test_a_cancelled_job_frees_its_worker_for_the_next(drawn: House) -> None:
    running = await drawn.submit("lab/slow", steps=900)
    await drawn.until(running, lambda event: isinstance(event, Progressed) and event.step == 2)
    after = await drawn.submit()
    await drawn.service.cancel(running.id)
    async with asyncio.timeout(5):
        assert (await drawn.service.wait(after.id)).status == "succeeded"
    assert running.status == "cancelled"


async def test_a_job_that_takes_too_long_fails_as_timed_out(tmp_path: Path) -> None:
    async with house(tmp_path, InProcessPool(("fake",)), generation_timeout=0.3) as built:
        job = await built.service.wait((await built.submit("lab/slow", steps=900)).id)
        assert (job.status, job.error_code) == ("failed", "generation_timeout")
        assert (await built.service.wait((await built.submit()).id)).status == "succeeded"


@pytest.mark.parametrize(("aging", "first"), [(60.0, "fake"), (0.0, "lab/slow")])
async def test_held_models_go_first_until_the_oldest_has_waited_enough(
    tmp_path: Path, aging: float, first: str
) -> None:
    pool = InProcessPool(("fake",), budget=Budget(max_models=1))
    async with house(tmp_path, pool, aging_seconds=aging) as built:
        running = await built.submit("fake", steps=30)
        await built.until(running, lambda event: isinstance(event, Progressed) and event.step == 1)
        older, younger = await built.submit("lab/slow", steps=1), await built.submit("fake")
        await asyncio.gather(*(built.service.wait(job.id) for job in (older, younger)))
        ended = sorted((older, younger), key=lambda job: job.changed)
        assert ended[0].request.model == first


async def test_a_job_whose_worker_is_killed_is_drawn_again(tmp_path: Path) -> None:
    async with house(tmp_path, LocalPool(("fake",))) as built:
        job = await built.submit(steps=50)
        await kill_at_step(built, job, 10)
        events = await built.events(job)

        assert [e.attempt for e in events if isinstance(e, Started)] == [1, 2]
        assert isinstance(events[-1], Succeeded)
        assert len(job.images) == 1
        steps = [e.step for e in progress(events) if e.step]
        assert steps[-50:] == list(range(1, 51))


async def test_a_job_that_kills_its_worker_twice_fails_and_the_next_is_drawn(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, LocalPool(("fake",))) as built:
        job = await built.submit(steps=50)
        await kill_at_step(built, job, 3)
        await kill_at_step(built, job, 3, attempt=2)
        assert (await built.service.wait(job.id)).error_code == "worker_crashed"
        events = await built.events(job)
        assert [e.code for e in events if isinstance(e, Failed)] == ["worker_crashed"]
        assert (await built.service.wait((await built.submit()).id)).status == "succeeded"


async def test_shutting_down_ends_every_job_and_takes_no_more(drawn: House) -> None:
    running, waiting = await drawn.submit("lab/slow", steps=900), await drawn.submit()
    await drawn.gateway.end_jobs()
    assert {running.error_code, waiting.error_code} == {"server_draining"}
    with pytest.raises(ShuttingDown):
        await drawn.submit()


async def test_running_jobs_may_finish_before_the_end(drawn: House) -> None:
    running = await drawn.submit(steps=20)
    await drawn.until(running, lambda event: isinstance(event, Started))
    await drawn.gateway.end_jobs(drain_s=10)
    assert running.status == "succeeded"


async def kill_at_step(built: House, job: Job, step: int, attempt: int = 1) -> None:
    async for numbered in built.service.follow(job.id):
        event = numbered.event
        if job.attempt == attempt and isinstance(event, Progressed) and event.step == step:
            os.kill(built.pool.slots()["fake"].pid, signal.SIGKILL)
            return
