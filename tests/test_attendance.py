"""Jobs that nobody waits for any more."""

from __future__ import annotations

import asyncio

from app.attendance import FOREVER, Attendance


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
