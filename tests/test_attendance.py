"""Jobs that nobody waits for any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.api._jobs import attended
from app.attendance import FOREVER, Attendance
from app.domain.request import Arguments
from app.workers.in_process import InProcessPool
from tests.house import house


class Cancels:
    def __init__(self) -> None:
        self.jobs: list[str] = []

    async def __call__(self, job_id: str) -> None:
        self.jobs.append(job_id)


async def test_the_last_to_leave_ends_the_job() -> None:
    cancels = Cancels()
    attendance = Attendance(cancels)
    attendance.attend("job")
    attendance.attend("job")
    await attendance.leave("job")
    assert cancels.jobs == []
    await attendance.leave("job")
    assert cancels.jobs == ["job"]


async def test_a_job_with_endless_grace_goes_on() -> None:
    cancels = Cancels()
    attendance = Attendance(cancels)
    attendance.grant("job", FOREVER)
    attendance.attend("job")
    await attendance.leave("job")
    await asyncio.sleep(0.05)
    assert cancels.jobs == []


async def test_grace_runs_out_unless_somebody_comes_back() -> None:
    cancels = Cancels()
    attendance = Attendance(cancels)
    for job in ("left", "returned"):
        attendance.grant(job, 0.05)
        attendance.attend(job)
        await attendance.leave(job)
    attendance.attend("returned")
    await asyncio.sleep(0.15)
    assert cancels.jobs == ["left"]
    await attendance.leave("returned")
    await asyncio.sleep(0.15)
    assert cancels.jobs == ["left", "returned"]


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
async def test_who_leaves_while_a_job_is_made_leaves_none_behind(
    tmp_path: Path, turns: int
) -> None:
    """He leaves after so many turns of the loop: before and while it is stored."""
    wish = Arguments(prompt="x", model="lab/slow", num_inference_steps=900)
    async with house(tmp_path, InProcessPool(("fake",))) as one:
        made = asyncio.create_task(attended(one.service, wish, owner="tests", door="tests"))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not made.done()
        made.cancel()
        await asyncio.gather(made, return_exceptions=True)
        await asyncio.sleep(0.3)  # whatever was under way is there now
        async with asyncio.timeout(5):
            while not all(job.ended for job in await one.jobs()):
                await asyncio.sleep(0.02)
        assert {job.status for job in await one.jobs()} <= {"cancelled"}
