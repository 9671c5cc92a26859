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

SlotState = Literal["starting", "up", "lost"]


class SlotInfo(msgspec.Struct, frozen=True):
    """A slot now. `device` is what torch calls it, `memory` its bytes (0: not known),
    `models` the ids that are held, `capacity` how many runs it takes at once, `pid` its process."""

    id: str
    device: str
    state: SlotState
    epoch: int
    capacity: int = 1
    memory: int = 0
    models: tuple[str, ...] = ()
    pid: int = 0


class RunSpec(msgspec.Struct, frozen=True):
    """One dispatch. The run is lost when nothing is heard of it for `stall_s` seconds
    (`load_stall_s` while its model is loading)."""

    run_id: str
    attempt: int
    epoch: int
    card: ModelCard
    request: GenerationRequest
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
    async def call(self, slot: str, verb: Literal["load", "unload"], card: ModelCard) -> Any:
        """Load or unload a model outside of any run.

        Raises an error of `domain.errors`, or WorkerLost."""

    async def recycle(self, slot: str) -> None:
        """Kill the slot's worker and start a fresh one."""
