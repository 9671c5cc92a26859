"""A pool whose workers are threads of this process: for `easel generate` and for tests.

It imports torch here and dies of what a worker dies of; the gateway uses `local` instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial

import msgspec

from app.domain.model_card import ModelCard
from app.workers.base import PoolEvent, RunSpec, SlotInfo, Verb
from app.workers.budget import Budget
from app.workers.slot import Slot, SlotRun
from app.workers.wire import FromWorker
from app.workers.worker import Worker


class InProcessPool:
    """One slot for each of `devices`. See `workers.base.WorkerPool`."""

    def __init__(
        self, devices: tuple[str, ...], *, capacity: int = 1, budget: Budget | None = None
    ) -> None:
        self._events: asyncio.Queue[PoolEvent] = asyncio.Queue()
        self._budget = msgspec.structs.replace(budget or Budget(), workers=len(devices))
        self._workers: dict[str, Worker] = {}
        self._slots = {
            device: Slot(
                SlotInfo(device, device, "lost", 0, capacity=capacity),
                self._events.put_nowait,
                partial(self._replace, device),
            )
            for device in devices
        }

    async def start(self) -> None:
        for device in self._slots:
            self._replace(device)

    async def close(self, drain_s: float = 0.0) -> None:
        for worker in self._workers.values():
            worker.stop()
        for slot in self._slots.values():
            slot.lose()

    def slots(self) -> Mapping[str, SlotInfo]:
        return {name: slot.info for name, slot in self._slots.items()}

    async def watch(self) -> AsyncIterator[PoolEvent]:
        while True:
            yield await self._events.get()

    def run(self, slot: str, spec: RunSpec) -> SlotRun:
        return self._slots[slot].run(spec)

    async def call(self, slot: str, verb: Verb, card: ModelCard) -> dict[int, float]:
        return await self._slots[slot].call(verb, card)

    async def recycle(self, slot: str) -> None:
        self._replace(slot)

    def _replace(self, name: str) -> None:
        """A fresh worker; an old one cannot be killed, so it is left to end and no longer heard."""
        slot = self._slots[name]
        if old := self._workers.pop(name, None):
            old.stop()
            slot.lose()
        loop = asyncio.get_running_loop()

        def send(message: FromWorker) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(hear, message)

        def hear(message: FromWorker) -> None:
            if self._workers.get(name) is worker:
                slot.take(message)

        worker = Worker(slot.info.device, slot.info.capacity, self._budget, send)
        self._workers[name] = worker
        slot.attach(worker.handle)
        worker.ready()
