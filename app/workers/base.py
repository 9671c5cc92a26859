"""The seam between the scheduler and the machines that draw. All that a new kind of pool must know.

A pool has slots, one per device. A slot runs several jobs at once, each as one `Run`. Delivery is at
most once: `WorkerLost` means *outcome unknown*, and only the scheduler decides about a retry.
`epoch` grows with each restart of a slot's worker; a run that was meant for an earlier life is
refused with `WorkerLost`, so that nothing runs where nobody expects it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, Protocol

import msgspec

from app.domain.events import EngineEvent
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest
from app.engines.base import ALONE, Sharing

SlotState = Literal["starting", "up", "lost"]
Verb = Literal["load", "unload", "profile"]


class SlotInfo(msgspec.Struct, frozen=True):
    """A slot now. `device` is what torch calls it, `memory` its bytes (0: not known),
    `capacity` how many runs it takes at once, `pid` its process.

    `models` are the ids that are held and `used` the bytes that they take, of the `room` that models
    may share (0: no limit). `parked` models have left the device for the host's memory, from where
    they return much faster than from the disk.
    """

    id: str
    device: str
    state: SlotState
    epoch: int
    capacity: int = 1
    memory: int = 0
    models: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()
    used: int = 0
    room: int = 0
    pid: int = 0


class RunSpec(msgspec.Struct, frozen=True):
    """One dispatch. The run is lost when nothing is heard of it for `stall_s` seconds
    (`load_stall_s` while its model is loading). `upscaler` enlarges what was drawn, `control` has a say
    in it."""

    run_id: str
    attempt: int
    epoch: int
    card: ModelCard
    request: GenerationRequest
    sharing: Sharing = ALONE
    upscaler: ModelCard | None = None
    control: ModelCard | None = None
    stall_s: float = 120.0
    load_stall_s: float = 1800.0


class PoolEvent(msgspec.Struct, frozen=True):
    """`up`: the slot takes runs; `lost`: its worker died and will be restarted; `held`: the set of
    models that it holds has changed."""

    kind: Literal["up", "lost", "held"]
    slot: str
    epoch: int


class WorkerLost(Exception):
    """The worker is gone or deaf; whether the run had an effect is not known."""


class Run(Protocol):
    """One running job.

    Iterating gives engine events and ends when the run succeeded. It raises an error of
    `domain.errors` when the run failed (`Cancelled` after `cancel`), and `WorkerLost`.
    """

    def __aiter__(self) -> AsyncIterator[EngineEvent]: ...
    async def cancel(self) -> None:
        """Stop at the next step. Effective even before the run has started; never raises."""

    async def aclose(self) -> None:
        """Give the run up: cancel it if it has not ended, and forget it."""


class WorkerPool(Protocol):
    async def start(self) -> None: ...
    async def close(self, drain_s: float = 0.0) -> None:
        """Stop all workers, after at most `drain_s` seconds for their runs."""

    def slots(self) -> Mapping[str, SlotInfo]: ...
    def watch(self) -> AsyncIterator[PoolEvent]:
        """Every change of a slot from now on. For one consumer."""

    def run(self, slot: str, spec: RunSpec) -> Run: ...
    async def call(self, slot: str, verb: Verb, card: ModelCard) -> Any:
        """Load or unload a model outside of any run; or "profile" it: seconds of one forward for
        pictures of its default size, by how many share it.

        Raises an error of `domain.errors`, or WorkerLost."""

    async def recycle(self, slot: str) -> None:
        """Kill the slot's worker and start a fresh one."""
