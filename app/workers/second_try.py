"""Drawing once more what did not fit."""

from __future__ import annotations

import gc
from collections.abc import Callable

from app.domain.errors import OutOfMemory
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, StepFinished, Waited
from app.engines.base import Report


def shortage(draw: Callable[[], None]) -> OutOfMemory | None:
    """Draw; the error if that ran out of memory, and then nothing is held any more of what it held.
    Other errors pass."""
    try:
        draw()
    except OutOfMemory as error:
        # The error itself goes with this block, and with it the frames whose tensors it holds.
        short = OutOfMemory(error.message, param=error.param)
    else:
        return None
    gc.collect()
    return short


class Retelling:
    """A report that, after `again`, leaves out what it has told before and says only that the run
    lives: who listens sees one run that takes longer, and each picture once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._repeating = False
        self._phases: set[str] = set()
        self._step = 0
        self._images: set[int] = set()

    def again(self) -> None:
        self._repeating = True

    def __call__(self, event: EngineEvent) -> None:
        known = self._knows(event)
        self._report(Waited() if known and self._repeating else event)

    def _knows(self, event: EngineEvent) -> bool:
        match event:
            case PhaseStarted(phase):
                known = phase in self._phases
                self._phases.add(phase)
            case StepFinished(step):
                known = step <= self._step
                self._step = max(step, self._step)
            case ImageFinished(index):
                known = index in self._images
                self._images.add(index)
            case _:
                known = False
        return known
