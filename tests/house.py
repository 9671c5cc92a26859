"""A service over a started scheduler and real workers, without the web."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from app.domain.events import JobEvent, Progressed, Started
from app.domain.job import Job
from app.domain.request import Arguments, Priority, Terms
from app.gateway import Gateway
from app.main import build
from app.settings import load_settings
from app.workers.in_process import InProcessPool
from app.workers.local import LocalPool
from tests.conftest import CARDS

Pool = InProcessPool | LocalPool
POOLS: dict[str, type[Pool]] = {"threads": InProcessPool, "processes": LocalPool}


class House:
    """What tests ask of it: submit, and see what happens."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self.gateway, self.pool = gateway, pool
        self.service, self.scheduler = gateway.service, gateway.scheduler

    async def submit(
        self,
        model: str = "fake",
        *,
        steps: int | None = None,
        n: int | None = None,
        owner: str = "tests",
        priority: Priority = "interactive",
        deadline: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        grace: float = 0.0,
    ) -> Job:
        terms = Terms(priority=priority, deadline=deadline, timeout=timeout)
        given = Arguments(prompt="x", model=model, num_inference_steps=steps, n=n, terms=terms)
        job = await self.service.submit(given, owner=owner, door="tests", grace=grace)
        await anext(self.service.follow(job.id))  # it was told where it stands
        return job

    async def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        ids = [past.job.id for past in (await self.service.archive.list(limit=1000)).jobs]
        return [await self.service.job(job_id) for job_id in ids]

    async def events(self, job: Job) -> list[JobEvent]:
        return [numbered.event async for numbered in self.service.follow(job.id)]

    async def until(self, job: Job, wanted: Callable[[JobEvent], bool]) -> float:
        """When the first event came that is as wanted, in Unix seconds."""
        async for numbered in self.service.follow(job.id):
            if wanted(numbered.event):
                return numbered.timestamp
        raise AssertionError("it never came")

    async def until_started(self, job: Job) -> float:
        return await self.until(job, lambda event: isinstance(event, Started))

    async def until_step(self, job: Job, step: int) -> float:
        return await self.until(
            job, lambda event: isinstance(event, Progressed) and (event.step or 0) >= step
        )

    async def all_ended(self, *jobs: Job) -> list[Job]:
        """The jobs in the order of their ends."""
        await asyncio.gather(*(self.service.wait(job.id) for job in jobs))
        return sorted(jobs, key=lambda job: job.changed)


@asynccontextmanager
async def house(folder: Path, pool: Pool, **given: object) -> AsyncIterator[House]:
    settings = load_settings(
        **{
            "data_dir": folder,
            "models_dir": CARDS,
            "default_model": "fake",
            "preload": (),
            "max_queue": 3,
            **given,
        }
    )
    gateway = build(settings, pool)
    await gateway.start()
    try:
        async with asyncio.timeout(30):
            while not gateway.scheduler.ready:
                await asyncio.sleep(0.01)
        yield House(gateway, pool)
    finally:
        await gateway.close()
