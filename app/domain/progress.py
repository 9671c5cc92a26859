"""How far a job is: once by the fixed weights of the phases, once by measured seconds."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.events import Phase, PhaseStarted, Progressed, StepFinished

PHASE_WEIGHTS: dict[Phase, float] = {
    "initializing": 5.0,
    "loading_model": 10.0,
    "preparing": 5.0,
    "generating": 70.0,
    "post_processing": 10.0,
}
"""Percent of the whole that each phase stands for; a contract with clients of `/generate/stream`."""

WORK_PHASES: tuple[Phase, ...] = tuple(PHASE_WEIGHTS)

MESSAGES: dict[Phase, str] = {
    "initializing": "Initializing...",
    "loading_model": "Loading model...",
    "preparing": "Preparing generation...",
    "generating": "Generating...",
    "post_processing": "Post-processing...",
    "complete": "Generation complete",
}

_TRUST_IN_THE_PAST = 2.0
"""Steps of this run that outweigh the expectation: after two, half of the pace is its own."""


def weighted_percent(phase: Phase, step: int = 0, total_steps: int = 0) -> float:
    """Percent by phase weights: step 10 of 20 in `generating` is 5 + 10 + 5 + 35 = 55.

    Returns the value at the beginning of `phase` when no step is given.
    """
    if phase == "complete":
        return 100.0
    done = 0.0
    for name, weight in PHASE_WEIGHTS.items():
        if name == phase:
            return done + (weight * step / total_steps if total_steps else 0.0)
        done += weight
    return 0.0


_ALMOST = 0.999
"""As far as `fraction` goes before the end, also when nothing is expected to take any time."""


class ProgressMeter:
    """Turns the engine events of one attempt into progress that can be believed.

    `expected` holds the seconds that each phase should take, from earlier runs. While the job runs,
    the remaining seconds are the rest of the present phase (steps left times the pace, a blend of
    the expected and the observed one) plus the phases to come. Two promises hold within an attempt:
    `eta_seconds` never grows (a late job holds its estimate until the truth falls below it), and
    `fraction = elapsed / (elapsed + eta_seconds)` therefore never shrinks. `elapsed` counts from the
    submission, so the wait in the queue is part of both.

    All times are seconds of one monotonic clock, given by the caller.
    """

    def __init__(self, submitted: float) -> None:
        self._submitted = submitted
        self._expected: Mapping[Phase, float] = {}
        self._eta = float("inf")
        self._fraction = 0.0
        self._phase: Phase = "queued"
        self._phase_began = submitted
        self._step = 0
        self._total_steps = 0
        self.measured: dict[Phase, float] = {}

    def wait(self, eta_seconds: float) -> float:
        """While the job is queued: the forecast until its end, made never to grow."""
        self._eta = min(self._eta, max(0.0, eta_seconds))
        return self._eta

    def begin(self, expected: Mapping[Phase, float]) -> None:
        """A worker took the job; `expected` are the seconds of each phase to come."""
        self._expected = expected

    def observe(self, event: PhaseStarted | StepFinished, now: float) -> Progressed:
        """Take in an engine event and say how far the job is."""
        preview = None
        if isinstance(event, PhaseStarted):
            self._close_phase(now)
            self._phase, self._phase_began, self._step = event.phase, now, 0
            if event.total_steps is not None:
                self._total_steps = event.total_steps
            message = MESSAGES[event.phase]
        else:
            self._step = event.step
            preview = event.preview
            message = f"Generating step {event.step}/{self._total_steps}"
        return self._progressed(message, now, preview)

    def finish(self, now: float) -> Progressed:
        """All pictures are there."""
        self._close_phase(now)
        self._phase, self._phase_began = "complete", now
        return self._progressed(MESSAGES["complete"], now, None)

    def _close_phase(self, now: float) -> None:
        if self._phase in PHASE_WEIGHTS:
            self.measured[self._phase] = now - self._phase_began

    def _progressed(self, message: str, now: float, preview: bytes | None) -> Progressed:
        self._eta = min(self._eta, self._remaining(now))
        elapsed = max(now - self._submitted, 1e-9)
        share = min(elapsed / (elapsed + self._eta), _ALMOST)
        self._fraction = 1.0 if self._phase == "complete" else max(self._fraction, share)
        stepping = self._phase == "generating"
        return Progressed(
            phase=self._phase,
            progress=weighted_percent(
                self._phase, self._step if stepping else 0, self._total_steps if stepping else 0
            ),
            fraction=self._fraction,
            eta_seconds=self._eta,
            message=message,
            step=self._step if stepping and self._step else None,
            total_steps=self._total_steps if stepping else None,
            preview=preview,
        )

    def _remaining(self, now: float) -> float:
        if self._phase == "complete":
            return 0.0
        later = WORK_PHASES[WORK_PHASES.index(self._phase) + 1 :]
        rest = sum(self._expected.get(phase, 0.0) for phase in later)
        expected = self._expected.get(self._phase, 0.0)
        in_phase = now - self._phase_began
        if self._phase != "generating" or not self._total_steps:
            return rest + max(0.0, expected - in_phase)
        usual_pace = expected / self._total_steps
        pace = (usual_pace * _TRUST_IN_THE_PAST + in_phase) / (_TRUST_IN_THE_PAST + self._step)
        return rest + pace * (self._total_steps - self._step)
