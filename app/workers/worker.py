"""A worker, whatever carries its messages: takes `ToWorker`, gives `FromWorker`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import Cancelled, EaselError
from app.domain.events import EngineEvent, Waited
from app.workers.base import RunSpec
from app.workers.budget import Budget
from app.workers.engine_host import EngineHost
from app.workers.wire import (
    Call,
    CallEnded,
    CancelRuns,
    FromWorker,
    Happened,
    Ready,
    RunEnded,
    StartRun,
    ToWorker,
)

_log = logging.getLogger(__name__)

_SIGN_OF_LIFE_SECONDS = 1.0
"""How often a run that waits for its turn says so: enough for the gateway not to think it dead."""

_CALLS_AT_ONCE = 4
"""A call may have to wait for room on the device; the others need not wait for it."""


class Worker:
    """Runs jobs in `capacity` threads, made when they are first needed, and calls beside them. `send`
    may be called from any of them. `memory` is the device's, in bytes (0: not known).

    The threads are kept: what a thread of its own needs (see `engines.cores`) is made once.
    """

    def __init__(
        self,
        device: str,
        capacity: int,
        budget: Budget,
        send: Callable[[FromWorker], None],
        *,
        memory: int = 0,
    ) -> None:
        self._send = send
        self._memory = memory
        self._host = EngineHost(device, budget, send, memory=memory)
        adopt = self._host.adopt_thread
        self._threads = ThreadPoolExecutor(capacity, "run", initializer=adopt)
        self._callers = ThreadPoolExecutor(_CALLS_AT_ONCE, "call", initializer=adopt)
        self._live: set[str] = set()
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()

    def ready(self) -> None:
        self._send(Ready(os.getpid(), self._memory, self._host.room))

    def handle(self, message: ToWorker) -> None:
        """Take one message in; returns at once."""
        match message:
            case StartRun(spec):
                with self._lock:
                    self._live.add(spec.run_id)
                self._threads.submit(self._run, spec)
            case CancelRuns(run_ids):
                with self._lock:
                    self._cancelled.update(self._live.intersection(run_ids))
            case Call():
                self._callers.submit(self._call, message)

    def stop(self) -> None:
        """Take no more work, let the threads end at their next step."""
        with self._lock:
            self._cancelled.update(self._live)
        self._host.close()
        for threads in (self._threads, self._callers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, spec: RunSpec) -> None:
        told = time.monotonic()

        def report(event: EngineEvent) -> None:
            nonlocal told
            if spec.run_id in self._cancelled:
                raise Cancelled("The job was cancelled.")
            if isinstance(event, Waited) and time.monotonic() < told + _SIGN_OF_LIFE_SECONDS:
                return
            told = time.monotonic()
            self._send(Happened(spec.run_id, event))

        what = (spec.card, spec.request, report, spec.sharing, spec.upscaler, spec.control)
        outcome = _outcome(lambda: self._host.run(*what))
        with self._lock:
            self._live.discard(spec.run_id)
            self._cancelled.discard(spec.run_id)
        self._send(RunEnded(spec.run_id, *outcome))

    def _call(self, call: Call) -> None:
        answer: dict[int, float] = {}

        def work() -> None:
            match call.verb:
                case "load":
                    self._host.load(call.card)
                case "unload":
                    self._host.unload(call.card.id)
                case "profile":
                    answer.update(self._host.profile(call.card))

        code, message, _ = _outcome(work)
        self._send(CallEnded(call.call_id, code, message, answer))


def _outcome(work: Callable[[], None]) -> tuple[str | None, str, str | None]:
    """Code, message and field of how `work` ended. A foreign exception's text stays in the log."""
    try:
        work()
    except EaselError as error:
        if not isinstance(error, Cancelled):
            _log.warning("%s: %s", error.code, error.message, exc_info=error.__cause__)
        return error.code, error.message, error.param
    except Exception:
        _log.exception("a run failed")
        return (
            "generation_failed",
            "The picture could not be drawn; the server's log says why.",
            None,
        )
    return None, "", None
