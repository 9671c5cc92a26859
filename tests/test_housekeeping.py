"""What is done now and then is done, and what fails is tried again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app import housekeeping
from app.domain.events import Phase
from app.store.errors import StorageFull
from app.store.history import Limits
from app.workers.in_process import InProcessPool
from tests.house import House, house

QUICK = {"_SAVE_SECONDS": 0.02, "_FORGET_SECONDS": 0.05, "_SWEEP_SECONDS": 0.05}


@pytest.fixture
async def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    for name, seconds in QUICK.items():
        monkeypatch.setattr(housekeeping, name, seconds)
    pool = InProcessPool(("fake",))
    async with house(tmp_path, pool, history_jobs=2, owner_jobs=1) as built:
        yield built


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.02)


async def test_old_history_is_forgotten(busy: House) -> None:
    for owner in ("a", "a", "b", "c"):
        await busy.service.wait((await busy.submit(owner=owner)).id)
    async with asyncio.timeout(10):
        while [job.owner for job in await busy.jobs()] != ["c", "b"]:
            await asyncio.sleep(0.02)


async def test_files_without_a_row_go_and_the_rest_stays(busy: House, tmp_path: Path) -> None:
    job = await busy.service.wait((await busy.submit()).id)
    stray = tmp_path / "images" / "ab" / f"{'ab' * 32}.png"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"nobody's")
    os.utime(stray, (0, 0))
    await until(lambda: not stray.exists())
    (image,) = job.images.values()
    assert (await busy.service.image(image.image_id)).data


async def test_measured_times_survive_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path, InProcessPool(("fake",))) as first:
        for _ in range(3):
            job = await first.service.wait((await first.submit("lab/slow", steps=10)).id)
    device: str = "fake"
    phase: Phase = "generating"
    async with house(tmp_path, InProcessPool(("fake",))) as second:
        times = second.scheduler._expectations.times
        assert times.knows(job.request, device, phase)
        assert times.expect(job.request, device, loaded=True)[phase] == pytest.approx(0.5, rel=0.5)


async def test_what_fails_is_tried_again(busy: House, caplog: pytest.LogCaptureFixture) -> None:
    keeping = busy.gateway._housekeeping
    attempts = 0

    async def retain(limits: Limits) -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise StorageFull("There is no room left for jobs.")
        if attempts == 2:
            raise ZeroDivisionError
        return 0

    keeping._archive.retain = retain  # type: ignore[method-assign]
    await until(lambda: attempts > 2)
    assert "has to wait: There is no room left" in caplog.text
    assert "ZeroDivisionError" in caplog.text
