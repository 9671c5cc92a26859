"""How far a job is: once by the fixed weights of the phases, once by measured seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from app.domain.events import Phase, PhaseStarted, Progressed, StepFinished

PHASE_WEIGHTS: dict[Phase, float] = {
    "initializing": 5.0,
    "loading_model": 10.0,
    "preparing": 5.0,
    "generating": 70.0,
    "post_processing": 10.0,
}
"""Percent of the whole that each phase stands for; a contract with clients of `/generate/stream`."""

_FETCH = 0.5
"""Share of `loading_model` that stands for fetching the model's files, where that is needed."""

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


class Left(msgspec.Struct, frozen=True):
    """Seconds of work that remain if nobody else works: before, in and after the denoising steps.

    Of the step that it is in, which takes `pace` alone, `under_way` seconds are over.
    """

    before: float
    steps: float
    after: float
    pace: float = 0.0
    under_way: float = 0.0


_CHARGED: tuple[Phase, ...] = ("preparing", "generating", "post_processing")
"""What a device does for one job alone; a model is loaded for whoever comes next as well."""


class ProgressMeter:
    """Turns the engine events of one attempt into progress that can be believed.

    `expected` holds the seconds that each phase should take, from earlier runs. While the job runs,
    the remaining seconds are the rest of the present phase (steps left times the pace, a blend of
    the expected and the observed one) plus the phases to come. Two promises hold within an attempt:
    `eta_seconds` never grows (a late job holds its estimate until the truth falls below it), and
    `fraction = elapsed / (elapsed + eta_seconds)` therefore never shrinks. `elapsed` counts from the
    submission, so the wait in the queue is part of both.

    A step that stood behind others' work, or shared its forward with others, took longer than it
    would alone. What is learnt and extrapolated is the pace alone; what others add to the rest of
    this run is for `forecast` to say, which `observe` takes.

    All times are seconds of one monotonic clock, given by the caller.
    """

    def __init__(self, submitted: float) -> None:
        self._submitted = submitted
        self._expected: Mapping[Phase, float] = {}
        self._eta = float("inf")
        self._fraction = 0.0
        self.floor = 0.0
        self._phase: Phase = "queued"
        self._phase_began = submitted
        self._step = 0
        self._total_steps = 0
        self._slowdown: Callable[[int], float] = _no_slowdown
        self._alone = 0.0
        self._stepped = submitted
        self.measured: dict[Phase, float] = {}
        self._charged = 0.0

    def wait(self, eta_seconds: float) -> float:
        """While the job is queued: the forecast until its end, made never to grow."""
        self._eta = min(self._eta, max(0.0, eta_seconds))
        return self._eta

    def fetch(self, share: float, seconds: float, message: str, now: float) -> Progressed:
        """While the model's files are fetched: `share` of them is here, and the forecast until the
        job's end is so many `seconds`. What is told of the queue afterwards stays above `floor`."""
        told = self._told("loading_model", message, now, seconds)
        begin = weighted_percent("loading_model")
        reached = begin + PHASE_WEIGHTS["loading_model"] * _FETCH * min(1.0, max(0.0, share))
        self.floor = max(self.floor, reached)
        return msgspec.structs.replace(told, progress=self.floor)

    def begin(
        self, expected: Mapping[Phase, float], slowdown: Callable[[int], float] | None = None
    ) -> None:
        """A worker took the job; `expected` are the seconds of each phase to come, when alone.

        `slowdown` says how many times longer a step takes when so many pictures share its forward.
        """
        self._expected = expected
        self._slowdown = slowdown or _no_slowdown

    def left(self, now: float) -> Left:
        """The work that remains at `now`."""
        before, steps, after = 0.0, 0.0, 0.0
        for phase in self._to_come():
            seconds = self._rest_of(phase, now)
            if phase == "generating":
                steps = seconds
            elif phase == "post_processing":
                after = seconds
            else:
                before += seconds
        if self._phase != "generating":
            return Left(before, steps, after)
        return Left(before, steps, after, self._pace(), now - self._stepped)

    @property
    def loading(self) -> bool:
        """Whether the run has begun and still waits for its model."""
        return self._phase in ("initializing", "loading_model")

    @property
    def finishing(self) -> bool:
        """Whether all denoising steps are done."""
        return self._phase in ("post_processing", "complete")

    def observe(
        self,
        event: PhaseStarted | StepFinished,
        now: float,
        forecast: Callable[[], float] | None = None,
    ) -> Progressed:
        """Take in an engine event and say how far the job is.

        `forecast` is asked afterwards for the seconds until the end; without it, the work that
        remains is taken for them.
        """
        shown: tuple[bytes, int] | None = None
        if isinstance(event, PhaseStarted):
            self._close_phase(now)
            self._phase, self._phase_began, self._step = event.phase, now, 0
            self._alone, self._stepped = 0.0, now
            if event.total_steps is not None:
                self._total_steps = event.total_steps
            message = MESSAGES[event.phase]
        else:
            self._alone += self._alone_seconds(event, now - self._stepped)
            self._step, self._stepped = event.step, now
            if event.preview is not None:
                shown = event.preview, event.index
            message = f"Generating step {event.step}/{self._total_steps}"
        return self._progressed(message, now, shown, forecast)

    def finish(self, now: float) -> Progressed:
        """All pictures are there."""
        self._close_phase(now)
        self._phase, self._phase_began = "complete", now
        return self._progressed(MESSAGES["complete"], now, None, None)

    def charge(self, now: float) -> float:
        """Seconds of the device since the last charge: net of what others took, without the load."""
        self._close_phase(now)
        spent = sum(self.measured.get(phase, 0.0) for phase in _CHARGED)
        before, self._charged = self._charged, max(spent, self._charged)
        return self._charged - before

    def _close_phase(self, now: float) -> None:
        if self._phase in PHASE_WEIGHTS:
            seconds = now - self._phase_began
            if self._phase == "generating":  # net of what others took
                seconds = self._alone + now - self._stepped
            self.measured[self._phase] = seconds

    def _alone_seconds(self, event: StepFinished, took: float) -> float:
        """What the step would have taken if nobody else had worked."""
        slower = self._slowdown(event.batch)
        if event.waited and event.waited >= took:  # it stood before this phase began, too
            return min(took, self._usual_pace() * slower) / slower
        return (took - event.waited) / slower

    def _usual_pace(self) -> float:
        return self._expected.get("generating", 0.0) / max(1, self._total_steps)

    def _progressed(
        self,
        message: str,
        now: float,
        shown: tuple[bytes, int] | None,
        forecast: Callable[[], float] | None,
    ) -> Progressed:
        remaining = forecast() if forecast is not None else self._remaining(now)
        stepping = self._phase == "generating"
        phase = self._phase
        if phase == "initializing" and self.floor > 0.0:  # the files came before
            phase, message = "loading_model", MESSAGES["loading_model"]
        told = self._told(phase, message, now, remaining)
        percent = weighted_percent(
            self._phase, self._step if stepping else 0, self._total_steps if stepping else 0
        )
        return msgspec.structs.replace(
            told,
            progress=max(self.floor, percent),
            step=self._step if stepping and self._step else None,
            total_steps=self._total_steps if stepping else None,
            preview=shown[0] if shown else None,
            image_index=shown[1] if shown else None,
        )

    def _told(self, phase: Phase, message: str, now: float, remaining: float) -> Progressed:
        self._eta = min(self._eta, max(0.0, remaining))
        elapsed = max(now - self._submitted, 1e-9)
        share = min(elapsed / (elapsed + self._eta), _ALMOST)
        self._fraction = 1.0 if phase == "complete" else max(self._fraction, share)
        return Progressed(
            phase=phase,
            progress=0.0,
            fraction=self._fraction,
            eta_seconds=self._eta,
            message=message,
        )

    def _remaining(self, now: float) -> float:
        return sum((self._rest_of(phase, now) for phase in self._to_come()), start=0.0)

    def _to_come(self) -> tuple[Phase, ...]:
        """The phases that are not over."""
        if self._phase == "complete":
            return ()
        if self._phase not in PHASE_WEIGHTS:
            return WORK_PHASES
        return WORK_PHASES[WORK_PHASES.index(self._phase) :]

    def _rest_of(self, phase: Phase, now: float) -> float:
        """Seconds alone that remain of a phase that is not over."""
        expected = self._expected.get(phase, 0.0)
        if phase != self._phase:
            return expected
        if phase != "generating" or not self._total_steps:
            return max(0.0, expected - (now - self._phase_began))
        return self._pace() * (self._total_steps - self._step)

    def _pace(self) -> float:
        """Seconds of a step alone, as this run has it."""
        known = self._usual_pace() * _TRUST_IN_THE_PAST
        return (known + self._alone) / (_TRUST_IN_THE_PAST + self._step)


def _no_slowdown(_: int) -> float:
    return 1.0
