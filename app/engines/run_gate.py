"""The steps of all pictures of one request as one row of events."""

from __future__ import annotations

import threading

from app.domain.events import PhaseStarted, StepFinished
from app.domain.request import GenerationRequest
from app.engines.base import Report
from app.engines.turnstile import Rider


class RunGate:
    """Counts the steps of all pictures of a request together, from 1 to `total_steps`.

    The pictures may be drawn at the same time: what is told is in order and told once.
    """

    def __init__(self, report: Report, request: GenerationRequest) -> None:
        self._report = report
        self._total = request.total_steps
        self._done = [0] * request.n
        self._told = 0
        self._began = False
        self._drawn: set[int] = set()
        self._lock = threading.Lock()

    def loop_began(self) -> None:
        with self._lock:
            if not self._began:
                self._report(PhaseStarted("generating", self._total))
                self._began = True

    def loop_ended(self, image: int) -> None:
        with self._lock:
            self._drawn.add(image)
            if len(self._drawn) == len(self._done):
                self._report(PhaseStarted("post_processing"))

    def stepped(self, image: int, done: int, preview: bytes | None, rider: Rider) -> None:
        """`done` steps of a picture are finished; a step that was told before is not told again."""
        with self._lock:
            self._done[image] = max(self._done[image], done)
            step = sum(self._done)
            waited, rider.waited = rider.waited, 0.0
            if step > self._told:
                self._told = step
                self._report(StepFinished(step, preview, rider.batch, waited, image))
