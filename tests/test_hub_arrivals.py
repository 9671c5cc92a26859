"""Jobs that wait for their model's files: in nobody's way, and as free to end as any other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest

from app.domain.errors import QueueFull
from app.domain.events import Expired, JobCancelled, Progressed, Started
from app.workers.in_process import InProcessPool
from tests.conftest import CARDS
from tests.house import House, house
from tests.hub_mirror import COMMIT, Mirror
from tests.shelves import REPO, UNET

CARD = f"""
id = "painter"
family = "stable_diffusion"
source = "hub:{REPO}"
revision = "{COMMIT}"
defaults = {{ width = 128, height = 128, num_inference_steps = 2, sampler = "ddim" }}
"""
FOREVER = float("inf")


@asynccontextmanager
async def house_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **given: object
) -> AsyncIterator[House]:
    cards = folder / "cards"
    shutil.copytree(CARDS, cards, dirs_exist_ok=True)
    (cards / "painter.toml").write_text(CARD)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(folder / "hub"))
    pool = InProcessPool(("fake",), capacity=2)
    async with house(folder / "data", pool, models_dir=cards, **given) as started:
        yield started


def state(one: House) -> str:
    return one.service.shelf.state("painter").state


async def under_way(one: House, mirror: Mirror) -> None:
    async with asyncio.timeout(20):
        while mirror.sent.get(UNET, 0) < 500_000:
            await asyncio.sleep(0.01)
    assert state(one) == "downloading"


async def test_other_models_go_on_meanwhile(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 1e6
    async with house_at(tmp_path, monkeypatch) as one:
        waiting = await one.submit("painter")
        await under_way(one, mirror)
        others = [await one.submit("fake"), await one.submit("lab/slow")]
        ended = await asyncio.wait_for(one.all_ended(*others), 20)
        assert [job.status for job in ended] == ["succeeded", "succeeded"]
        assert state(one) == "downloading"
        assert waiting.status == "queued"
        assert one.service.waiting() == 1
        await one.service.cancel(waiting.id)


async def test_a_job_that_waits_for_files_can_be_cancelled(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 1e6
    async with house_at(tmp_path, monkeypatch) as one:
        first, second = await one.submit("painter"), await one.submit("painter")
        await under_way(one, mirror)
        await one.service.cancel(first.id)
        assert isinstance((await one.events(first))[-1], JobCancelled)
        assert state(one) == "downloading"
        await one.service.cancel(second.id)
        assert state(one) == "not_downloaded"
        assert one.service.waiting() == 0


async def test_a_deadline_counts_during_a_download(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 1e6
    async with house_at(tmp_path, monkeypatch) as one:
        job = await one.submit("painter", deadline=1.0)
        events = await asyncio.wait_for(one.events(job), 10)
        assert isinstance(events[-1], Expired)
        assert all(isinstance(event, Progressed | Expired) for event in events)
        assert state(one) == "not_downloaded"


async def test_who_waits_for_files_takes_a_place_in_the_queue(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 1e6
    async with house_at(tmp_path, monkeypatch, max_queue=2) as one:
        jobs = [await one.submit("painter"), await one.submit("painter")]
        with pytest.raises(QueueFull):
            await one.submit("painter")
        for job in jobs:
            await one.service.cancel(job.id)


async def test_an_orderly_end_leaves_the_job_and_what_has_come_to_the_next_process(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 1e6
    async with house_at(tmp_path, monkeypatch) as one:
        job = await one.submit("painter", grace=FOREVER)
        await under_way(one, mirror)
    mirror.rate = 4e6
    async with house_at(tmp_path, monkeypatch) as one:
        events = await asyncio.wait_for(
            one.until(job, lambda event: isinstance(event, Started)), 60
        )
        assert events
    resumed = mirror.ranges(UNET)[-1]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) >= 400_000


async def test_progress_before_the_size_is_known_is_a_cautious_guess(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rate = 3e6
    async with house_at(tmp_path, monkeypatch) as one:
        job = await one.submit("painter")
        await one.until(job, lambda event: isinstance(event, Started))
        told = [
            numbered.event
            async for numbered in one.service.follow(job.id)
            if isinstance(numbered.event, Progressed)
        ]
        coming = [event for event in told if event.message.startswith("Downloading")]
        assert coming[0].message == "Downloading painter: looking up its files"
        assert coming[0].eta_seconds >= 1000
        assert coming[0].progress == 5.0
        etas = [event.eta_seconds for event in told]
        assert etas == sorted(etas, reverse=True)
        assert 1.0 < coming[-1].eta_seconds + 3 < 60
        shares = [event.fraction for event in told]
        assert shares == sorted(shares)
        percents = [event.progress for event in told]
        assert percents == sorted(percents)
        assert all(event.progress <= 10.0 for event in coming)
