"""The gateway's end of one worker: its state, and the runs that wait for its messages."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import msgspec

from app.domain.errors import error_from
from app.domain.events import EngineEvent, PhaseStarted, Waited
from app.domain.model_card import ModelCard
from app.workers.base import PoolEvent, RunSpec, SlotInfo, Verb, WorkerLost
from app.workers.wire import (
    Call,
    CallEnded,
    CancelRuns,
    FromWorker,
    Happened,
    Held,
    Ready,
    RunEnded,
    StartRun,
    ToWorker,
)


class SlotRun:
    """One run as its consumer sees it: see `workers.base.Run`."""

    def __init__(self, slot: Slot, spec: RunSpec) -> None:
        self._slot = slot
        self._spec = spec
        self._items: asyncio.Queue[EngineEvent | Exception | None] = asyncio.Queue()
        self._loads_until: float | None = None
        self._ended = False

    def put(self, item: EngineEvent | Exception | None) -> None:
        """An event, the error that ended the run, or None when it succeeded."""
        self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    item = await self._items.get()
            except TimeoutError as silence:
                self._slot.deaf()
                raise WorkerLost("nothing was heard of the run") from silence
            if item is None or isinstance(item, Exception):
                self._ended = True
                if item is None:
                    return
                raise item
            if isinstance(item, PhaseStarted) and item.phase == "loading_model":
                self._loads_until = time.monotonic() + self._spec.load_stall_s
            elif not isinstance(item, Waited):
                self._loads_until = None
            yield item

    def _patience(self) -> float:
        """Seconds for the next message. A run that waits for its model says that it lives, which does
        not mean that the loading does: signs of life buy it no more time."""
        if self._loads_until is None:
            return self._spec.stall_s
        return min(self._spec.load_stall_s, max(0.0, self._loads_until - time.monotonic()))

    async def cancel(self) -> None:
        self._slot.send(CancelRuns((self._spec.run_id,)))

    async def aclose(self) -> None:
        if not self._ended:
            self._slot.forget(self._spec.run_id)


class Slot:
    """Bookkeeping shared by all pools whose workers speak `wire`.

    The pool calls `attach` for each life of the worker, `take` for what it says and `lose` when it
    is gone. `deaf` is called when a run stalled: the pool then replaces the worker.
    """

    def __init__(
        self,
        info: SlotInfo,
        announce: Callable[[PoolEvent], None],
        deaf: Callable[[], None],
    ) -> None:
        self.info = info
        self.deaf = deaf
        self._announce = announce
        self._deliver: Callable[[ToWorker], None] | None = None
        self._runs: dict[str, SlotRun] = {}
        self._calls: dict[int, asyncio.Future[dict[int, float]]] = {}
        self._call_ids = itertools.count()

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    def attach(self, deliver: Callable[[ToWorker], None]) -> None:
        """A new worker lives at the other end of `deliver`."""
        self._deliver = deliver
        self._change("starting", epoch=self.info.epoch + 1, pid=0)

    def send(self, message: ToWorker) -> None:
        if self._deliver is not None:
            self._deliver(message)

    def take(self, message: FromWorker) -> None:
        if self.info.state == "lost":
            return  # last words of a worker that was given up
        match message:
            case Ready(pid, memory, room):
                self._change("up", pid=pid, memory=memory, room=room)
                self._tell("up")
            case Held(models, parked, used):
                self._change(self.info.state, models=models, parked=parked, used=used)
                self._tell("held")
            case Happened(run_id, event):
                if run := self._runs.get(run_id):
                    run.put(event)
            case RunEnded(run_id, code, text, param):
                if run := self._runs.pop(run_id, None):
                    run.put(error_from(code, text, param) if code else None)
            case CallEnded(call_id, code, text, answer):
                future = self._calls.pop(call_id, None)
                if future is not None and not future.done():
                    if code:
                        future.set_exception(error_from(code, text))
                    else:
                        future.set_result(answer)

    def lose(self) -> None:
        """The worker is gone, or given up: every run and call ends with WorkerLost."""
        if self.info.state == "lost":
            return
        self._deliver = None
        self._change("lost", models=(), parked=(), used=0, pid=0)
        for run in self._runs.values():
            run.put(WorkerLost("the worker died"))
        self._runs.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(WorkerLost("the worker died"))
        self._calls.clear()
        self._tell("lost")

    def run(self, spec: RunSpec) -> SlotRun:
        run = SlotRun(self, spec)
        if self.info.state != "up" or spec.epoch != self.info.epoch:
            run.put(WorkerLost("the slot is not in the life this run was meant for"))
            return run
        self._runs[spec.run_id] = run
        self.send(StartRun(spec))
        return run

    def forget(self, run_id: str) -> None:
        if self._runs.pop(run_id, None) is not None:
            self.send(CancelRuns((run_id,)))

    async def call(self, verb: Verb, card: ModelCard) -> dict[int, float]:
        if self.info.state != "up":
            raise WorkerLost("the slot is not up")
        call_id = next(self._call_ids)
        future: asyncio.Future[dict[int, float]] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        self.send(Call(call_id, verb, card))
        return await future

    def _change(self, state: Literal["starting", "up", "lost"], **new: Any) -> None:
        self.info = msgspec.structs.replace(self.info, state=state, **new)

    def _tell(self, kind: Literal["up", "lost", "held"]) -> None:
        self._announce(PoolEvent(kind, self.info.id, self.info.epoch))
