"""The gateway's end of one worker: its state, and the runs that wait for its messages."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec

from app.domain.errors import EaselError, error_from
from app.domain.events import EngineEvent, PhaseStarted
from app.domain.model_card import ModelCard
from app.workers.base import PoolEvent, RunSpec, SlotInfo, WorkerLost
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
        self._loading = False
        self._ended = False

    def put(self, item: EngineEvent | Exception | None) -> None:
        """An event, the error that ended the run, or None when it succeeded."""
        self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        while True:
            limit = self._spec.load_stall_s if self._loading else self._spec.stall_s
            try:
                async with asyncio.timeout(limit):
                    item = await self._items.get()
            except TimeoutError as silence:
                self._slot.deaf()
                raise WorkerLost("nothing was heard of the run") from silence
            if item is None or isinstance(item, Exception):
                self._ended = True
                if item is None:
                    return
                raise item
            if isinstance(item, PhaseStarted):
                self._loading = item.phase == "loading_model"
            yield item

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
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._call_ids = itertools.count()

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    def attach(self, deliver: Callable[[ToWorker], None]) -> None:
        """A new worker lives at the other end of `deliver`."""
        self._deliver = deliver
        self._change("starting", epoch=self.info.epoch + 1, models=(), pid=0)

    def send(self, message: ToWorker) -> None:
        if self._deliver is not None:
            self._deliver(message)

    def take(self, message: FromWorker) -> None:
        if self.info.state == "lost":
            return  # last words of a worker that was given up
        match message:
            case Ready(pid, memory):
                self._change("up", pid=pid, memory=memory)
                self._tell("up")
            case Held(models):
                self._change(self.info.state, models=models)
                self._tell("held")
            case Happened(run_id, event):
                if run := self._runs.get(run_id):
                    run.put(event)
            case RunEnded(run_id, code, text, param):
                if run := self._runs.pop(run_id, None):
                    run.put(error_from(code, text, param) if code else None)
            case CallEnded(call_id, code, text):
                future = self._calls.pop(call_id, None)
                if future is not None and not future.done():
                    _settle(future, error_from(code, text) if code else None)

    def lose(self) -> None:
        """The worker is gone, or given up: every run and call ends with WorkerLost."""
        if self.info.state == "lost":
            return
        self._deliver = None
        self._change("lost", models=(), pid=0)
        for run in self._runs.values():
            run.put(WorkerLost("the worker died"))
        self._runs.clear()
        for future in self._calls.values():
            if not future.done():
                _settle(future, WorkerLost("the worker died"))
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

    async def call(self, verb: Literal["load", "unload"], card: ModelCard) -> None:
        if self.info.state != "up":
            raise WorkerLost("the slot is not up")
        call_id = next(self._call_ids)
        future = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        self.send(Call(call_id, verb, card))
        await future

    def _change(
        self,
        state: Literal["starting", "up", "lost"],
        *,
        epoch: int | None = None,
        models: tuple[str, ...] | None = None,
        pid: int | None = None,
        memory: int | None = None,
    ) -> None:
        new = {"epoch": epoch, "models": models, "pid": pid, "memory": memory}
        given = {name: value for name, value in new.items() if value is not None}
        self.info = msgspec.structs.replace(self.info, state=state, **given)

    def _tell(self, kind: Literal["up", "lost", "held"]) -> None:
        self._announce(PoolEvent(kind, self.info.id, self.info.epoch))


def _settle(future: asyncio.Future[None], error: EaselError | WorkerLost | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
