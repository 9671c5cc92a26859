"""What every pool of workers promises, asked of threads and of processes alike."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app.domain.errors import Cancelled, ModelUnavailable
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, StepFinished, Waited
from app.domain.model_card import ModelCard
from app.domain.request import Arguments, GenerationRequest
from app.settings import load_cards
from app.workers.base import RunSpec, WorkerLost
from app.workers.budget import Budget
from app.workers.in_process import InProcessPool
from app.workers.local import LocalPool

Pool = InProcessPool | LocalPool
POOLS: dict[str, type[Pool]] = {"threads": InProcessPool, "processes": LocalPool}
CARDS = load_cards(Path(__file__).parent / "cards")


@pytest.fixture(params=sorted(POOLS))
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[Pool]:
    async with started(POOLS[request.param](("fake",))) as pool:
        yield pool


@asynccontextmanager
async def started(pool: Pool) -> AsyncIterator[Pool]:
    await pool.start()
    try:
        async for event in pool.watch():
            if event.kind == "up":
                break
        yield pool
    finally:
        await pool.close()


def wish(model: str = "fake", **given: int) -> tuple[ModelCard, GenerationRequest]:
    card = CARDS[model]
    arguments = Arguments(
        prompt="x",
        n=given.get("n"),
        num_inference_steps=given.get("steps"),
        seed=given.get("seed", 1),
    )
    return card, card.resolve(arguments, draw_seed=lambda: 0)


def spec(
    pool: Pool,
    run_id: str = "r1",
    wanted: tuple[ModelCard, GenerationRequest] | None = None,
    stall_s: float = 60.0,
) -> RunSpec:
    card, request = wanted or wish()
    return RunSpec(run_id, 1, pool.slots()["fake"].epoch, card, request, stall_s=stall_s)


async def test_a_run_tells_every_phase_and_step_in_order(pool: Pool) -> None:
    events = [event async for event in pool.run("fake", spec(pool, wanted=wish(n=2)))]

    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == [
        "initializing",
        "loading_model",
        "preparing",
        "generating",
        "post_processing",
    ]
    assert [event.step for event in events if isinstance(event, StepFinished)] == list(range(1, 9))
    images = [event for event in events if isinstance(event, ImageFinished)]
    assert [(image.index, image.seed) for image in images] == [(0, 1), (1, 2)]
    assert images[0].image.startswith(b"\x89PNG")
    assert images[0].image != images[1].image


async def test_a_held_model_is_told_and_can_be_unloaded(pool: Pool) -> None:
    card = CARDS["fake"]
    await pool.call("fake", "load", card)
    assert pool.slots()["fake"].models == ("fake",)
    await pool.call("fake", "unload", card)
    assert pool.slots()["fake"].models == ()


@pytest.mark.parametrize("kind", sorted(POOLS))
async def test_the_model_used_least_recently_makes_room(kind: str) -> None:
    third = CARDS["fake"].model_copy(update={"id": "third"})
    async with started(POOLS[kind](("fake",), budget=Budget(max_models=2))) as pool:
        for card in (CARDS["fake"], CARDS["lab/slow"], CARDS["fake"], third):
            await pool.call("fake", "load", card)
        assert pool.slots()["fake"].models == ("fake", "third")


async def test_cancel_ends_a_run_within_a_step(pool: Pool) -> None:
    run = pool.run("fake", spec(pool, wanted=wish(steps=500)))
    steps = 0
    with pytest.raises(Cancelled):
        async for event in run:
            if isinstance(event, StepFinished):
                steps = event.step
                if steps == 3:
                    await run.cancel()
    assert 3 <= steps <= 6  # those that were on their way


async def test_a_run_cancelled_before_it_begins_does_not_begin(
    pool: Pool,
) -> None:
    first = pool.run("fake", spec(pool, "first", wish(steps=30)))
    second = pool.run("fake", spec(pool, "second"))
    await second.cancel()
    assert await count(first) > 30
    seen: list[EngineEvent] = []
    with pytest.raises(Cancelled):
        async for event in second:
            seen.append(event)
    assert seen == []


async def test_cancel_touches_only_its_own_run(pool: Pool) -> None:
    first = pool.run("fake", spec(pool, "first", wish(steps=20)))
    second = pool.run("fake", spec(pool, "second", wish(steps=20)))
    await first.cancel()
    with pytest.raises(Cancelled):
        await count(first)
    assert await count(second) == 26


async def test_aclose_frees_the_worker(pool: Pool) -> None:
    run = pool.run("fake", spec(pool, "long", wish(steps=900)))
    async for event in run:
        if isinstance(event, StepFinished):
            break
    await run.aclose()
    async with asyncio.timeout(5):
        assert await count(pool.run("fake", spec(pool, "next"))) == 10


async def test_a_model_that_cannot_be_loaded_fails_with_its_own_code(
    tmp_path: Path, pool: Pool
) -> None:
    card = CARDS["fake"].model_copy(
        update={"id": "gone", "family": "stable_diffusion", "source": str(tmp_path)}
    )
    with pytest.raises(ModelUnavailable) as raised:
        await count(pool.run("fake", spec(pool, wanted=(card, wish()[1]))))
    assert str(tmp_path) not in raised.value.message
    assert await count(pool.run("fake", spec(pool, "next"))) == 10


async def test_a_run_for_an_earlier_life_is_refused(pool: Pool) -> None:
    old = spec(pool)
    await pool.recycle("fake")
    await until_up(pool)
    with pytest.raises(WorkerLost):
        await count(pool.run("fake", old))
    assert await count(pool.run("fake", spec(pool))) == 10


async def test_recycling_loses_the_runs_of_the_old_life_only(
    pool: Pool,
) -> None:
    epoch = pool.slots()["fake"].epoch
    run = pool.run("fake", spec(pool, wanted=wish(steps=900)))
    await pool.recycle("fake")
    with pytest.raises(WorkerLost):
        await count(run)
    await until_up(pool)
    assert pool.slots()["fake"].epoch == epoch + 1


async def test_a_worker_that_falls_silent_is_replaced(pool: Pool) -> None:
    epoch = pool.slots()["fake"].epoch
    silent = CARDS["fake"].model_copy(
        update={"fake": CARDS["fake"].fake.model_copy(update={"step_seconds": 30.0})}
    )
    if isinstance(pool, InProcessPool):  # its thread cannot be killed, so let it end soon
        silent = CARDS["fake"].model_copy(
            update={"fake": CARDS["fake"].fake.model_copy(update={"step_seconds": 1.0})}
        )
    with pytest.raises(WorkerLost):
        await count(pool.run("fake", spec(pool, wanted=(silent, wish()[1]), stall_s=0.3)))
    await until_up(pool)
    assert pool.slots()["fake"].epoch == epoch + 1


async def test_a_slow_worker_that_speaks_is_left_alone(pool: Pool) -> None:
    epoch = pool.slots()["fake"].epoch
    slow = spec(pool, wanted=wish("lab/slow", steps=20), stall_s=0.6)
    assert await count(pool.run("fake", slow)) == 26
    assert pool.slots()["fake"].epoch == epoch


async def test_a_killed_worker_loses_its_runs_and_comes_back() -> None:
    async with started(LocalPool(("fake",))) as pool:
        before = pool.slots()["fake"]
        run = pool.run("fake", spec(pool, wanted=wish(steps=900)))
        with pytest.raises(WorkerLost):
            async for event in run:
                if isinstance(event, StepFinished) and event.step == 2:
                    os.kill(before.pid, signal.SIGKILL)
        await until_up(pool)
        after = pool.slots()["fake"]
        assert (after.epoch, after.pid != before.pid) == (before.epoch + 1, True)
        assert await count(pool.run("fake", spec(pool))) == 10


async def test_the_worker_listens_nowhere_and_ends_with_the_pool() -> None:
    async with started(LocalPool(("fake",))) as pool:
        worker = psutil.Process(pool.slots()["fake"].pid)
        assert [c for c in worker.net_connections() if c.status == psutil.CONN_LISTEN] == []
    with pytest.raises(psutil.NoSuchProcess):
        worker.status()


async def until_up(pool: Pool) -> None:
    async with asyncio.timeout(30):
        while pool.slots()["fake"].state != "up":
            await asyncio.sleep(0.02)


async def count(run: object) -> int:
    """How many events the run gives until it ends; not its signs of life, which a busy machine adds."""
    events = [event async for event in run]  # type: ignore[attr-defined]
    return len([event for event in events if not isinstance(event, Waited)])
