"""Models within a budget, in real worker processes: what happens to the runs that wait for them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from app.domain.errors import Cancelled, ModelUnavailable, OutOfMemory
from app.domain.events import EngineEvent, PhaseStarted, StepFinished, Waited
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.settings import ConfigurationError, load_settings
from app.workers.base import Run, RunSpec, WorkerLost
from app.workers.budget import Budget
from app.workers.local import LocalPool
from tests.paper_models import paper_model

DEVICE = "fake"


@asynccontextmanager
async def worker(budget: Budget | None = None, capacity: int = 8) -> AsyncIterator[LocalPool]:
    pool = LocalPool((DEVICE,), capacity=capacity, budget=budget)
    await pool.start()
    try:
        await until_up(pool)
        yield pool
    finally:
        await pool.close()


async def until_up(pool: LocalPool) -> None:
    async with asyncio.timeout(30):
        while pool.slots()[DEVICE].state != "up":
            await asyncio.sleep(0.02)


def run(
    pool: LocalPool,
    card: ModelCard,
    name: str = "r",
    *,
    steps: int = 2,
    stall_s: float = 60.0,
    load_stall_s: float = 60.0,
) -> Run:
    arguments = Arguments(prompt="x", num_inference_steps=steps)
    request = card.resolve(arguments, draw_seed=lambda: 0)
    epoch = pool.slots()[DEVICE].epoch
    return pool.run(
        DEVICE,
        RunSpec(name, 1, epoch, card, request, stall_s=stall_s, load_stall_s=load_stall_s),
    )


async def events_of(run: Run) -> list[EngineEvent]:
    return [event async for event in run]


async def until_step(run: Run) -> AsyncIterator[EngineEvent]:
    """The run's events, once its first step is done."""
    events = aiter(run)
    async for event in events:
        if isinstance(event, StepFinished):
            break
    return events


async def until_loading(run: Run) -> AsyncIterator[EngineEvent]:
    events = aiter(run)
    async for event in events:
        if event == PhaseStarted("loading_model"):
            break
    return events


async def test_two_runs_of_a_model_at_once_load_it_once(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a", load=1.0)
    async with worker() as pool:
        began = time.monotonic()
        await asyncio.gather(*(events_of(run(pool, card, name)) for name in ("r1", "r2", "r3")))
        assert 1.0 <= time.monotonic() - began < 1.8


async def test_a_run_that_waits_for_a_load_can_be_cancelled_and_the_load_goes_on(
    tmp_path: Path,
) -> None:
    card = paper_model(tmp_path, "a", load=3.0)
    async with worker() as pool:
        began = time.monotonic()
        first = run(pool, card)
        events = await until_loading(first)
        await asyncio.sleep(0.3)
        asked = time.monotonic()
        await first.cancel()
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
        assert time.monotonic() - asked < 0.2
        await events_of(run(pool, card, "second"))
        assert time.monotonic() - began < 4.5  # a load begun anew would take until 6.3
        assert pool.slots()[DEVICE].models == ("a",)


async def test_a_run_that_waits_says_that_it_lives_and_others_are_drawn_meanwhile(
    tmp_path: Path,
) -> None:
    slow, quick = paper_model(tmp_path, "slow", load=2.5), paper_model(tmp_path, "quick")
    async with worker() as pool:
        await pool.call(DEVICE, "load", quick)
        waiting = asyncio.create_task(events_of(run(pool, slow, "slow", stall_s=1.8)))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await events_of(run(pool, quick, "quick"))
        assert time.monotonic() - began < 1.0
        assert Waited() in await waiting


async def test_a_load_that_never_ends_is_a_lost_worker_though_it_says_that_it_lives(
    tmp_path: Path,
) -> None:
    card = paper_model(tmp_path, "a", load=30.0)
    async with worker() as pool:
        began = time.monotonic()
        with pytest.raises(WorkerLost):
            await events_of(run(pool, card, load_stall_s=1.5))
        assert time.monotonic() - began < 2.5
        await until_up(pool)


async def test_two_models_alternate_in_a_room_for_one(tmp_path: Path) -> None:
    cards = [paper_model(tmp_path, name, 60) for name in ("a", "b")]
    async with worker(Budget(max_vram=100_000_000)) as pool:
        assert pool.slots()[DEVICE].room == 100_000_000
        for card in (*cards, *cards):
            await events_of(run(pool, card))
            slot = pool.slots()[DEVICE]
            assert (slot.models, slot.parked, slot.used) == ((card.id,), (), 60_000_000)


async def test_many_runs_of_two_models_in_a_room_for_one_are_all_drawn(tmp_path: Path) -> None:
    cards = [paper_model(tmp_path, name, 60, load=0.05) for name in ("a", "b")]
    async with worker(Budget(max_vram=100_000_000)) as pool:
        async with asyncio.timeout(30):
            await asyncio.gather(
                *(events_of(run(pool, cards[i % 2], f"r{i}", steps=3)) for i in range(24))
            )
        assert len(pool.slots()[DEVICE].models) == 1


async def test_a_run_waits_for_room_until_a_busy_model_is_idle(tmp_path: Path) -> None:
    busy, other = (paper_model(tmp_path, name, 60) for name in ("a", "b"))
    async with worker(Budget(max_vram=100_000_000)) as pool:
        running = run(pool, busy, "busy", steps=100)
        rest = await until_step(running)
        waiting, leaving = run(pool, other, "waiting"), run(pool, other, "leaving")
        waited = asyncio.create_task(events_of(waiting))
        await asyncio.sleep(0.2)
        assert pool.slots()[DEVICE].models == ("a",)
        asked = time.monotonic()
        await leaving.cancel()
        with pytest.raises(Cancelled):
            await events_of(leaving)
        assert time.monotonic() - asked < 0.2
        async for _ in rest:
            pass
        await waited
        assert pool.slots()[DEVICE].models == ("b",)


async def test_pinned_models_stay_and_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    pinned, first, small, large = (
        paper_model(tmp_path, name, size)
        for name, size in (("pinned", 60), ("first", 30), ("small", 30), ("large", 70))
    )
    async with worker(Budget(max_vram=100_000_000, pinned=("pinned",))) as pool:
        await pool.call(DEVICE, "load", pinned)
        await events_of(run(pool, first))
        await events_of(run(pool, small))
        with pytest.raises(OutOfMemory) as refused:
            await events_of(run(pool, large))
        assert str(tmp_path) not in refused.value.message
        assert pool.slots()[DEVICE].models == ("pinned", "small")


async def test_models_nobody_uses_are_let_go(tmp_path: Path) -> None:
    async with worker(Budget(model_ttl=0.3)) as pool:
        await events_of(run(pool, paper_model(tmp_path, "a", 5)))
        assert pool.slots()[DEVICE].used == 5_000_000
        async with asyncio.timeout(5):
            while pool.slots()[DEVICE].models:
                await asyncio.sleep(0.02)
        assert pool.slots()[DEVICE].used == 0


async def test_a_worker_killed_while_loading_loses_the_run_and_comes_back_empty(
    tmp_path: Path,
) -> None:
    card = paper_model(tmp_path, "a", 5, load=2.0)
    async with worker() as pool:
        loading = run(pool, card)
        events = await until_loading(loading)
        async with asyncio.timeout(2):
            while not pool.slots()[DEVICE].used:
                await asyncio.sleep(0.02)
        os.kill(pool.slots()[DEVICE].pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            async for _ in events:
                pass
        await until_up(pool)
        slot = pool.slots()[DEVICE]
        assert (slot.models, slot.used) == ((), 0)
        await events_of(run(pool, card))


async def test_a_model_that_cannot_be_loaded_is_refused_quickly_the_second_time(
    tmp_path: Path,
) -> None:
    broken = paper_model(tmp_path, "a").model_copy(update={"family": "stable_diffusion"})
    async with worker() as pool:
        for limit in (60.0, 0.5):
            began = time.monotonic()
            with pytest.raises(ModelUnavailable):
                await events_of(run(pool, broken))
            assert time.monotonic() - began < limit
        assert (pool.slots()[DEVICE].models, pool.slots()[DEVICE].used) == ((), 0)
        await events_of(run(pool, paper_model(tmp_path, "b")))


async def test_calls_do_not_wait_for_runs_nor_for_each_other(tmp_path: Path) -> None:
    busy, other = paper_model(tmp_path, "a", 60), paper_model(tmp_path, "b", 60)
    small = paper_model(tmp_path, "small", 5)
    async with worker(Budget(max_vram=100_000_000), capacity=1) as pool:
        rest = await until_step(run(pool, busy, steps=120))
        for_room = asyncio.create_task(pool.call(DEVICE, "load", other))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(1):
            await pool.call(DEVICE, "load", small)
            await pool.call(DEVICE, "unload", small)
        assert not for_room.done()
        async for _ in rest:
            pass
        await for_room


def test_sizes_are_numbers_with_units_or_left_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().budget() == Budget()
    monkeypatch.setenv("EASEL_MAX_VRAM", "12GB")
    monkeypatch.setenv("EASEL_MAX_RAM", "1.5GiB")
    monkeypatch.setenv("EASEL_PINNED", '["sketch"]')
    assert load_settings(model_ttl=60.0).budget() == Budget(
        max_vram=12 * 10**9, max_ram=3 * 2**29, pinned=("sketch",), model_ttl=60.0
    )
    msgspec.json.encode(load_settings().budget())  # for the workers
    for wrong in ("12 apples", "-1", "0"):
        monkeypatch.setenv("EASEL_MAX_VRAM", wrong)
        with pytest.raises(ConfigurationError, match="max_vram"):
            load_settings()


def test_a_share_of_what_there_is() -> None:
    gpu = Budget().room_on("cuda", 100)
    assert (gpu.shared, gpu.alone) == (80, 100)
    assert Budget(max_vram=30, max_ram=50, workers=2).room_on("cuda", 100).copies == 25
    home = Budget().room_on("cpu", 0)
    assert 0 < home.shared < home.alone
    assert home.copies == 0
    two = Budget(max_ram=50, workers=2).room_on("cpu", 0)
    assert (two.shared, two.alone) == (25, 25)
