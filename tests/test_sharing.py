"""Several jobs on one worker: who goes first, who shares, who waits, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from app.domain.events import Expired, Progressed, Queued, Started
from app.domain.job import Job
from app.domain.request import Arguments
from app.workers.budget import Budget
from app.workers.in_process import InProcessPool
from app.workers.local import LocalPool
from tests.house import POOLS, House, house

STEP = 0.05
"""Seconds of a step of `lab/slow` and of `lab/batch`, which lets four pictures share one."""


@pytest.fixture(params=sorted(POOLS))
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    pool = POOLS[request.param](("fake",), capacity=8)
    given = {"preload": ("lab/slow", "lab/batch", "fake"), "max_queue": 100}
    async with house(tmp_path, pool, **given) as built:
        yield built


# -- who goes first --------------------------------------------------------------------------------


async def test_an_interactive_job_goes_before_a_running_background_job_within_a_step(
    shared: House,
) -> None:
    long = await shared.submit("lab/slow", steps=50, priority="background")
    await shared.until_step(long, 5)
    urgent = await shared.submit("lab/slow", steps=4)
    stepped = await shared.until_step(urgent, 1)
    await shared.service.wait(urgent.id)

    assert stepped - urgent.created < 2 * STEP + 0.08  # the step that ran, its own, and a margin
    assert urgent.changed - urgent.created < 5 * STEP + 0.25
    assert long.status == "running"
    await shared.service.cancel(long.id)


async def test_a_short_job_is_not_stuck_behind_a_long_one_of_its_class(shared: House) -> None:
    long = await shared.submit("lab/slow", steps=100)
    await shared.until_step(long, 3)
    short = await shared.submit("lab/slow", steps=3)
    await shared.service.wait(short.id)
    assert short.changed - short.created < 1.0
    assert long.status == "running"
    await shared.service.cancel(long.id)


async def test_equals_run_to_their_end(shared: House) -> None:
    first = await shared.submit("lab/slow", steps=10)
    await shared.until_step(first, 1)
    second = await shared.submit("lab/slow", steps=10)
    started = await shared.until_started(second)
    assert started >= await shared.until_step(first, 10)
    assert [job.id for job in await shared.all_ended(first, second)] == [first.id, second.id]


async def test_jobs_that_share_forwards_run_together(shared: House) -> None:
    jobs = await asyncio.gather(*(shared.submit("lab/batch", steps=20) for _ in range(4)))
    await shared.all_ended(*jobs)
    took = max(job.changed for job in jobs) - jobs[0].created
    assert took < 2 * 20 * STEP  # one after the other would take four times as long


async def test_no_more_share_than_the_profile_allows(shared: House) -> None:
    jobs = await asyncio.gather(*(shared.submit("lab/batch", steps=10) for _ in range(5)))
    last = await shared.until_started(jobs[4])
    assert last >= min([await shared.until_step(job, 10) for job in jobs[:4]])
    await shared.all_ended(*jobs)


async def test_waiting_interactive_jobs_start_before_waiting_background_jobs(shared: House) -> None:
    running = await shared.submit("lab/slow", steps=10)
    await shared.until_step(running, 1)
    later = await shared.submit("lab/slow", steps=8, priority="background")
    sooner = await shared.submit("lab/slow", steps=8)
    assert (await shared.all_ended(later, sooner))[0] is sooner


async def test_a_background_job_that_starved_is_not_passed_any_more(tmp_path: Path) -> None:
    pool = InProcessPool(("fake",))
    given = {"preload": ("fake", "lab/slow"), "starvation_seconds": 0.2, "max_queue": 100}
    async with house(tmp_path, pool, **given) as built:
        running = await built.submit("lab/slow", steps=12)
        starving = await built.submit("lab/slow", steps=4, priority="background")
        await asyncio.sleep(0.4)
        younger = await built.submit("lab/slow", steps=4)
        assert (await built.all_ended(starving, younger))[0] is starving
        await built.service.wait(running.id)


# -- fairness --------------------------------------------------------------------------------------


async def test_owners_get_their_share_by_weight(tmp_path: Path) -> None:
    pool = LocalPool(("fake",))
    given = {
        "preload": ("fake",),
        "max_queue": 100,
        "owner_weights": {"heavy": 3.0},
    }
    async with house(tmp_path, pool, **given) as built:
        light = await asyncio.gather(*(built.submit(steps=5, owner="light") for _ in range(16)))
        heavy = await asyncio.gather(*(built.submit(steps=5, owner="heavy") for _ in range(16)))
        ended = await built.all_ended(*light, *heavy)
        share = sum(job.owner == "heavy" for job in ended[:16])
        assert 10 <= share <= 14  # three quarters of sixteen, and one job of each was too early


async def test_one_job_does_not_wait_for_the_hundred_of_another_owner(tmp_path: Path) -> None:
    async with house(tmp_path, InProcessPool(("fake",)), max_queue=100) as built:
        many = await asyncio.gather(*(built.submit(steps=5, owner="many") for _ in range(20)))
        await built.service.wait(many[4].id)
        one = await built.submit(steps=5, owner="one")
        ended = await built.all_ended(*many, one)
        assert ended.index(one) < 5 + 1 + 4


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("aging", [10.0, 0.4])
async def test_two_models_in_the_place_of_one_are_swapped_less_than_half_as_often(
    tmp_path: Path, aging: float
) -> None:
    pool = InProcessPool(("fake",), budget=Budget(max_models=1))
    async with house(tmp_path, pool, max_queue=100, max_models=1, aging_seconds=aging) as built:
        jobs = await asyncio.gather(
            *(built.submit(model, steps=2) for _ in range(8) for model in ("lab/slow", "lab/batch"))
        )
        ended = await built.all_ended(*jobs)
        models = [job.request.model for job in ended]
        swaps = sum(a != b for a, b in pairwise(models))
        assert swaps <= 7  # in the order of arrival it would be fifteen


# -- the end of patience ---------------------------------------------------------------------------


async def test_a_deadline_ends_a_job_that_waits(shared: House) -> None:
    running = await shared.submit("lab/slow", steps=40)
    await shared.until_started(running)
    waiting = await shared.submit("lab/slow", steps=40, deadline=0.3)
    events = await shared.events(waiting)

    assert isinstance(events[-1], Expired)
    assert (waiting.status, waiting.error_code) == ("expired", "deadline_exceeded")
    assert waiting.changed - waiting.created == pytest.approx(0.3, abs=0.2)
    assert waiting.attempt == 0
    assert running.status == "running"
    await shared.service.cancel(running.id)


async def test_a_deadline_ends_a_job_that_runs_and_frees_its_worker(shared: House) -> None:
    running = await shared.submit("lab/slow", steps=200, deadline=0.4)
    assert (await shared.service.wait(running.id)).status == "expired"
    assert running.attempt == 1
    after = await shared.submit()
    async with asyncio.timeout(3):
        assert (await shared.service.wait(after.id)).status == "succeeded"


async def test_a_deadline_that_is_kept_changes_nothing(shared: House) -> None:
    job = await shared.submit(deadline=0.8)
    assert (await shared.service.wait(job.id)).status == "succeeded"
    await asyncio.sleep(0.9)
    assert job.status == "succeeded"


async def test_a_job_may_set_itself_a_shorter_timeout(shared: House) -> None:
    job = await shared.service.wait((await shared.submit("lab/slow", steps=200, timeout=0.3)).id)
    assert (job.status, job.error_code) == ("failed", "generation_timeout")


async def test_standing_behind_others_is_not_drawing(shared: House) -> None:
    slow = await shared.submit("lab/slow", steps=16, priority="background", timeout=1.6)
    await shared.until_step(slow, 2)
    urgent = await shared.submit("lab/slow", steps=40)
    await shared.service.wait(urgent.id)  # two seconds
    assert (await shared.service.wait(slow.id)).status == "succeeded"


async def test_a_job_that_stands_behind_others_can_be_cancelled(shared: House) -> None:
    slow = await shared.submit("lab/slow", steps=50, priority="background")
    await shared.until_step(slow, 2)
    urgent = await shared.submit("lab/slow", steps=20)
    await shared.until_step(urgent, 2)
    await shared.service.cancel(slow.id)
    assert slow.status == "cancelled"
    assert (await shared.service.wait(urgent.id)).status == "succeeded"
    async with asyncio.timeout(3):
        assert (await shared.service.wait((await shared.submit()).id)).status == "succeeded"


async def test_what_runs_together_may_finish_before_the_end(shared: House) -> None:
    jobs = await asyncio.gather(*(shared.submit("lab/batch", steps=10) for _ in range(3)))
    await shared.until_step(jobs[2], 1)
    await shared.gateway.end_jobs(drain_s=10)
    assert {job.status for job in jobs} == {"succeeded"}


async def test_neighbours_of_a_deadly_job_are_drawn_again_without_it(tmp_path: Path) -> None:
    pool = LocalPool(("fake",), capacity=8)
    async with house(tmp_path, pool, preload=("lab/batch",), max_queue=100) as built:
        jobs = await asyncio.gather(*(built.submit("lab/batch", steps=30) for _ in range(3)))
        await built.until_step(jobs[2], 2)
        os.kill(pool.slots()["fake"].pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        again = await built.until(
            jobs[0], lambda event: isinstance(event, Started) and event.attempt == 2
        )
        ends = await built.all_ended(*jobs)
        assert {job.status for job in jobs} == {"succeeded"}
        assert {job.attempt for job in jobs} == {2}
        alone = 30 * STEP
        gaps = [b.changed - a.changed for a, b in pairwise(ends)]
        assert min(gaps) > 0.8 * alone  # one after the other
        assert ends[0].changed - again > 0.8 * alone


# -- what is told ----------------------------------------------------------------------------------


async def test_time_left_of_a_waiting_job_never_grows_when_others_pass_it(shared: House) -> None:
    running = await shared.submit("lab/slow", steps=30)
    await shared.until_step(running, 1)
    passed = await shared.submit("lab/slow", steps=10, priority="background")
    for _ in range(3):
        await shared.submit("lab/slow", steps=30)
    async with asyncio.timeout(10):
        while passed.position != 4:
            await asyncio.sleep(0.01)
    await shared.service.cancel(passed.id)
    etas = [e.eta_seconds for e in await shared.events(passed) if isinstance(e, Queued)]
    assert len(etas) >= 2  # it was told again when it fell behind, and the truth had grown
    assert etas == sorted(etas, reverse=True)
    for job in await shared.jobs():
        await shared.service.cancel(job.id)


async def test_forecasts_come_true_alone_and_behind_four_others(shared: House) -> None:
    for model in ("lab/slow", "lab/batch"):
        await shared.service.wait((await shared.submit(model, steps=10)).id)
    for model in ("lab/slow", "lab/batch"):
        jobs = await asyncio.gather(
            *(shared.submit(model, steps=10 + number) for number in range(5))
        )
        at_half: list[float] = []
        await shared.all_ended(*jobs)
        for job in jobs:
            numbered = [one async for one in shared.service.follow(job.id)]
            half = job.created + (job.changed - job.created) / 2
            told = [
                (one.timestamp, one.event.eta_seconds)
                for one in numbered
                if isinstance(one.event, Queued | Progressed)
            ]
            when, eta = [one for one in told if one[0] <= half][-1]
            at_half.append(abs(when + eta - job.changed) / (job.changed - job.created))
        first = (await shared.events(jobs[4]))[0]
        assert isinstance(first, Queued)
        took = jobs[4].changed - jobs[4].created
        # Loose, for busy machines: without sharing, or without the queue, it would be half or twice.
        assert first.eta_seconds == pytest.approx(took, rel=0.4)
        assert statistics.median(at_half) < 0.2


async def test_an_estimate_tells_place_and_time_and_takes_nothing(shared: House) -> None:
    await shared.service.wait((await shared.submit("lab/slow", steps=10)).id)
    await shared.submit("lab/slow", steps=20)
    await shared.submit("lab/slow", steps=20)
    wish = shared.service.resolve(_given("lab/slow", 20))
    _, told = shared.service.estimate(_given("lab/slow", 20), owner="tests")

    assert wish.num_inference_steps == 20
    assert (told.queue_position, told.model_held) == (2, True)
    assert told.eta_seconds == pytest.approx(3 * 20 * STEP, rel=0.25)
    assert told.eta_seconds < told.eta_seconds_p90 < 2 * told.eta_seconds
    assert len(await shared.jobs()) == 3
    for job in await shared.jobs():
        await shared.service.cancel(job.id)


async def test_waiting_jobs_are_told_why(shared: House) -> None:
    running = await shared.submit("lab/slow", steps=20)
    await shared.until_step(running, 1)
    reasons = []
    for job in (
        await shared.submit("lab/slow", steps=20),
        await shared.submit("lab/slow", steps=20),
    ):
        reasons.append(job.message)
        assert job.status == "queued"
    assert reasons[0].startswith("behind 1 job, ~")
    assert reasons[1].startswith("behind 2 jobs, ~")
    for job in await shared.jobs():
        await shared.service.cancel(job.id)


async def test_a_job_is_told_that_its_model_is_not_there(tmp_path: Path) -> None:
    pool = InProcessPool(("fake",), capacity=8)
    async with house(tmp_path, pool, preload=("fake",)) as built:
        running = await built.submit("fake", steps=100)
        await built.until_step(running, 1)
        waiting = await built.submit("lab/slow", steps=200, priority="background")
        assert waiting.message.startswith("waiting_for_model: lab/slow, ~")
        for job in (running, waiting):
            await built.service.cancel(job.id)


async def test_a_long_queue_costs_the_gateway_little(tmp_path: Path) -> None:
    async with house(tmp_path, InProcessPool(("fake",)), max_queue=100) as built:
        running = await built.submit("lab/slow", steps=100)
        await built.until_step(running, 1)
        began = time.process_time()
        jobs: list[Job] = await asyncio.gather(
            *(built.submit("lab/slow", steps=5 + number) for number in range(100))
        )
        spent = time.process_time() - began
        assert spent / len(jobs) < 0.05
        for job in [running, *jobs]:
            await built.service.cancel(job.id)


def _given(model: str, steps: int) -> Arguments:
    return Arguments(prompt="x", model=model, num_inference_steps=steps)
