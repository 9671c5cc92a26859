"""A worker, whatever carries its messages: takes `ToWorker`, gives `FromWorker`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import Cancelled, EaselError
from app.domain.events import EngineEvent
from app.workers.base import RunSpec
from app.workers.engine_host import EngineHost
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

_log = logging.getLogger(__name__)


class Worker:
    """Runs jobs in `capacity` threads. `send` may be called from any of them.

    The threads are kept: each Python thread that enters torch gets its own OpenMP team, and making
    one for every run would cost more than a small step.
    """

    def __init__(
        self, device: str, capacity: int, max_models: int, send: Callable[[FromWorker], None]
    ) -> None:
        self._send = send
        self._host = EngineHost(device, max_models, lambda models: send(Held(models)))
        self._threads = ThreadPoolExecutor(capacity, thread_name_prefix="run")
        self._live: set[str] = set()
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()

    def ready(self, memory: int = 0) -> None:
        self._send(Ready(os.getpid(), memory))

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
                self._threads.submit(self._call, message)

    def stop(self) -> None:
        """Take no more work, let the threads end at their next step."""
        with self._lock:
            self._cancelled.update(self._live)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, spec: RunSpec) -> None:
        def report(event: EngineEvent) -> None:
            if spec.run_id in self._cancelled:
                raise Cancelled("The job was cancelled.")
            self._send(Happened(spec.run_id, event))

        outcome = _outcome(lambda: self._host.run(spec.card, spec.request, report))
        with self._lock:
            self._live.discard(spec.run_id)
            self._cancelled.discard(spec.run_id)
        self._send(RunEnded(spec.run_id, *outcome))

    def _call(self, call: Call) -> None:
        if call.verb == "load":
            code, message, _ = _outcome(lambda: self._host.load(call.card))
        else:
            code, message, _ = _outcome(lambda: self._host.unload(call.card.id))
        self._send(CallEnded(call.call_id, code, message))


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
