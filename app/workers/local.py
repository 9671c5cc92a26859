"""A pool of child processes on this machine, one per device.

What you can rely on: a worker that dies takes only its own runs with it and is started again, at
once after a healthy life and with growing pauses when it keeps dying; no worker outlives the pool.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from app.domain.model_card import ModelCard
from app.workers import wire
from app.workers.base import PoolEvent, RunSpec, SlotInfo, Verb
from app.workers.budget import Budget
from app.workers.slot import Slot, SlotRun

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_HEALTHY_LIFE = 60.0
"""Seconds; a worker that lived this long is started again without a pause."""


class LocalPool:
    """One slot for each of `devices` ("cpu", "cuda:0", …). See `workers.base.WorkerPool`."""

    def __init__(
        self, devices: tuple[str, ...], *, capacity: int = 1, budget: Budget | None = None
    ) -> None:
        self._events: asyncio.Queue[PoolEvent] = asyncio.Queue()
        self._budget = msgspec.structs.replace(budget or Budget(), workers=len(devices))
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._slots = {
            device: Slot(
                SlotInfo(device, device, "lost", 0, capacity=capacity),
                self._events.put_nowait,
                partial(self._kill, device),
            )
            for device in devices
        }

    async def start(self) -> None:
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in self._slots.values()]

    async def close(self, drain_s: float = 0.0) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while any(slot.busy for slot in self._slots.values()):
                    await asyncio.sleep(0.05)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

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
        self._kill(slot)

    def _kill(self, name: str) -> None:
        if process := self._processes.get(name):
            with suppress(ProcessLookupError):
                process.kill()
        self._slots[name].lose()  # at once, so that nothing more is sent to it

    async def _keep(self, slot: Slot) -> None:
        """Start the slot's worker again and again, until the pool closes."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            born = time.monotonic()
            await self._live(slot)
            lived = time.monotonic() - born
            pause = (
                0.0 if lived > _HEALTHY_LIFE else min(max(pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            )
            _log.warning("worker %s is gone; a new one starts in %.1f s", slot.info.id, pause)

    async def _live(self, slot: Slot) -> None:
        """One life of a worker, from its start to its death."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.workers.child"),
                *(str(theirs.fileno()), str(os.getpid()), _own_name(slot.info.device)),
                *(str(slot.info.capacity), msgspec.json.encode(self._budget)),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(slot.info.device),
            )
        self._processes[slot.info.id] = process
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            slot.attach(lambda message: writer.write(wire.frame(message)))
            while True:
                slot.take(await wire.read(reader))
        except (EOFError, OSError):
            pass  # it is gone
        except ValueError:
            _log.error("worker %s sent what is no message", slot.info.id)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            writer.close()
            slot.lose()
            await process.wait()


def _own_name(device: str) -> str:
    """What the device is called inside a process that sees only this one."""
    return "cuda" if device.startswith("cuda:") else device


def _environment(device: str) -> dict[str, str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "USE_HUB_KERNELS": "NO",
        "TOKENIZERS_PARALLELISM": "false",
        # Their warnings quote prompts, for one about words that an encoder has no room for.
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    environment.pop("HF_TOKEN", None)  # a worker fetches nothing
    # How long OpenMP's threads spin before they sleep: long enough for the gap between two kernels of
    # a small model (sleeping at once doubles the time of a picture), short enough not to fight other
    # programs for the cores (the default spins for milliseconds).
    environment.setdefault("GOMP_SPINCOUNT", "10000")
    if device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    return environment
