"""How far a job is, told twice: by the weights of the phases, exactly, and by measured seconds.

Promised of the second: it is there from the first event, `eta_seconds` never grows, `fraction`
never shrinks, both end where they must, and with true expectations they are true all the way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from app.domain.events import Phase, PhaseStarted, Progressed, StepFinished
from app.domain.progress import MESSAGES, WORK_PHASES, Left, ProgressMeter, weighted_percent

EXPECTED: dict[Phase, float] = {
    "initializing": 0.5,
    "loading_model": 4.0,
    "preparing": 0.25,
    "generating": 10.0,
    "post_processing": 1.0,
}
STEPS = 20


# -- by weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "percent"),
    [
        ("queued", 0.0),
        ("initializing", 0.0),
        ("loading_model", 5.0),
        ("preparing", 15.0),
        ("generating", 20.0),
        ("post_processing", 90.0),
        ("complete", 100.0),
        ("error", 0.0),
    ],
)
def test_where_each_phase_begins(phase: Phase, percent: float) -> None:
    assert weighted_percent(phase) == percent


@pytest.mark.parametrize(
    ("step", "total", "percent"),
    [(0, 20, 20.0), (1, 20, 23.5), (10, 20, 55.0), (20, 20, 90.0), (1, 4, 37.5), (1, 1, 90.0)],
)
def test_steps_share_the_seventy_percent_of_generating(
    step: int, total: int, percent: float
) -> None:
    assert weighted_percent("generating", step, total) == percent


def test_percent_is_never_beyond_its_phase_for_any_number_of_steps() -> None:
    for total in range(1, 151):
        shares = [weighted_percent("generating", step, total) for step in range(total + 1)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (20.0, 90.0)


# -- by seconds ------------------------------------------------------------------------------------


class Job:
    """Drives a meter through a whole job whose phases really take `real` seconds."""

    def __init__(
        self, expected: Mapping[Phase, float], waited: float = 0.0, forecast: float | None = None
    ) -> None:
        self.now = 1000.0
        self.meter = ProgressMeter(self.now)
        self.told: list[tuple[float, Progressed]] = []
        if forecast is not None:
            self.meter.wait(forecast)
        self.now += waited
        self.meter.begin(expected)

    def run(self, real: Mapping[Phase, float], jitter: random.Random | None = None) -> Job:
        for phase in WORK_PHASES:
            stepping = phase == "generating"
            self._tell(PhaseStarted(phase, STEPS if stepping else None))
            if not stepping:
                self.now += real[phase]
                continue
            paces = [jitter.uniform(0, 2) if jitter else 1.0 for _ in range(STEPS)]
            for step, pace in enumerate(paces, start=1):
                self.now += real[phase] / STEPS * pace
                self._tell(StepFinished(step))
        self.told.append((self.now, self.meter.finish(self.now)))
        return self

    def _tell(self, event: PhaseStarted | StepFinished) -> None:
        self.told.append((self.now, self.meter.observe(event, self.now)))

    def check_promises(self) -> None:
        etas = [told.eta_seconds for _, told in self.told]
        fractions = [told.fraction for _, told in self.told]
        percents = [told.progress for _, told in self.told]
        assert all(math.isfinite(eta) and eta >= 0 for eta in etas)
        assert etas == sorted(etas, reverse=True)
        assert fractions == sorted(fractions)
        assert percents == sorted(percents)
        assert fractions[0] >= 0
        last = self.told[-1][1]
        assert (last.phase, last.progress, last.fraction, last.eta_seconds) == (
            "complete",
            100.0,
            1.0,
            0.0,
        )


def scaled(factor: float) -> dict[Phase, float]:
    return {phase: seconds * factor for phase, seconds in EXPECTED.items()}


def test_with_true_expectations_every_estimate_is_true() -> None:
    job = Job(EXPECTED, waited=3.0, forecast=3.0 + sum(EXPECTED.values())).run(EXPECTED)
    job.check_promises()
    end = job.now
    for now, told in job.told:
        assert told.eta_seconds == pytest.approx(end - now, abs=1e-6)
        assert told.fraction == pytest.approx((now - 1000.0) / (end - 1000.0), abs=1e-6)


def test_the_first_event_is_finite_even_when_nothing_was_forecast_or_expected() -> None:
    meter = ProgressMeter(5.0)
    first = meter.observe(PhaseStarted("initializing"), 5.0)
    assert math.isfinite(first.eta_seconds)
    assert 0.0 <= first.fraction <= 1.0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 1.5, 3.0, 20.0])
def test_promises_hold_for_jobs_faster_and_slower_than_expected(factor: float) -> None:
    Job(EXPECTED, waited=2.0, forecast=18.0).run(scaled(factor)).check_promises()


@pytest.mark.parametrize("seed", range(150))
def test_promises_hold_for_any_job(seed: int) -> None:
    """Expectations, forecasts, phases and steps that have nothing to do with each other."""
    dice = random.Random(seed)

    def any_seconds() -> dict[Phase, float]:
        return {phase: 10 ** dice.uniform(-3, 2) for phase in WORK_PHASES}

    forecast = 10 ** dice.uniform(-3, 2) if dice.random() < 0.7 else None
    job = Job(any_seconds(), waited=dice.uniform(0, 30), forecast=forecast)
    job.run(any_seconds(), jitter=dice).check_promises()


@pytest.mark.parametrize("factor", [0.3, 0.6, 1.5, 3.0])
def test_after_three_quarters_of_its_steps_a_job_knows_its_own_pace(factor: float) -> None:
    real = {**EXPECTED, "generating": EXPECTED["generating"] * factor}
    job = Job(EXPECTED, forecast=sum(EXPECTED.values())).run(real)
    now, told = next((now, told) for now, told in job.told if told.step == 15)
    assert told.eta_seconds == pytest.approx(job.now - now, rel=0.2)


def test_a_late_job_holds_its_estimate_until_the_truth_falls_below_it() -> None:
    job = Job(EXPECTED).run({**EXPECTED, "generating": 100.0})
    etas = [told.eta_seconds for _, told in job.told if told.phase == "generating"]
    held = sum(eta == etas[0] for eta in etas)
    assert held > STEPS / 2
    assert all(later < sooner for sooner, later in zip(etas[held - 1 :], etas[held:], strict=False))


def test_a_forecast_never_grows_while_the_job_waits() -> None:
    meter = ProgressMeter(0.0)
    assert [meter.wait(eta) for eta in (10.0, 12.0, 8.0, 9.0, -1.0)] == [10.0, 10.0, 8.0, 8.0, 0.0]


def test_the_wait_in_the_queue_is_part_of_the_whole() -> None:
    job = Job(EXPECTED, waited=sum(EXPECTED.values()), forecast=2 * sum(EXPECTED.values()))
    assert job.run(EXPECTED).told[0][1].fraction == pytest.approx(0.5)


def test_every_phase_is_measured_as_long_as_it_took() -> None:
    real: dict[Phase, float] = {
        "initializing": 0.125,
        "loading_model": 2.0,
        "preparing": 0.5,
        "generating": 5.0,
        "post_processing": 0.25,
    }
    assert Job(EXPECTED).run(real).meter.measured == pytest.approx(real)


# -- in company ------------------------------------------------------------------------------------


def generating(expected: float = 4.0, slower: float = 1.0) -> ProgressMeter:
    """A meter of a run of four steps that has just begun with them."""
    meter = ProgressMeter(0.0)
    meter.begin({"generating": expected}, lambda batch: 1.0 + slower * (batch - 1))
    meter.observe(PhaseStarted("generating", 4), 0.0)
    return meter


def test_waiting_behind_others_is_neither_learnt_nor_extrapolated() -> None:
    meter = generating()
    meter.observe(StepFinished(1, None, 1, 9.0), 10.0)
    assert meter.left(10.0).steps == pytest.approx(3.0)
    for step in (2, 3, 4):
        meter.observe(StepFinished(step), 9.0 + step)
    meter.observe(PhaseStarted("post_processing"), 13.0)
    assert meter.measured["generating"] == pytest.approx(4.0)


def test_shared_steps_count_as_if_they_had_been_alone() -> None:
    meter = generating(slower=0.5)
    for step in (1, 2, 3, 4):
        meter.observe(StepFinished(step, None, 3), 2.0 * step)  # twice as slow with three
    meter.observe(PhaseStarted("post_processing"), 8.0)
    assert meter.measured["generating"] == pytest.approx(4.0)


def test_a_step_that_stood_longer_than_it_took_teaches_nothing_new() -> None:
    meter = generating()
    meter.observe(StepFinished(1, None, 1, 5.0), 2.0)  # it stood before its steps began, too
    assert meter.left(2.0).steps == pytest.approx(3.0)


def test_what_others_add_is_told_when_it_is_known_and_still_never_grows() -> None:
    meter = generating()
    assert meter.observe(StepFinished(1), 1.0, lambda: 3.5).eta_seconds == 3.5
    assert meter.observe(StepFinished(2), 2.0, lambda: 6.0).eta_seconds == 3.5
    assert meter.observe(StepFinished(3), 3.0, lambda: 1.25).eta_seconds == 1.25


def test_what_is_left_is_told_by_its_parts() -> None:
    meter = ProgressMeter(0.0)
    meter.begin(EXPECTED)
    assert meter.left(0.0) == Left(4.75, 10.0, 1.0)
    meter.observe(PhaseStarted("preparing"), 5.0)
    assert meter.left(5.125) == Left(0.125, 10.0, 1.0)
    meter.observe(PhaseStarted("generating", 4), 6.0)
    assert not meter.finishing
    meter.observe(StepFinished(1), 8.5)
    assert meter.left(9.25) == Left(0.0, 7.5, 1.0, pace=2.5, under_way=0.75)
    meter.observe(PhaseStarted("post_processing"), 16.0)
    assert meter.left(16.25) == Left(0.0, 0.0, 0.75)
    assert meter.finishing
    meter.finish(17.0)
    assert meter.left(17.0) == Left(0.0, 0.0, 0.0)


# -- what is said ----------------------------------------------------------------------------------


def test_messages_name_the_phase_and_count_the_steps() -> None:
    told = [told for _, told in Job(EXPECTED).run(EXPECTED).told]
    starts = [told.message for told in told if told.step is None]
    assert starts == [MESSAGES[phase] for phase in (*WORK_PHASES, "complete")]
    steps = [told for told in told if told.step is not None]
    assert [told.message for told in steps] == [
        f"Generating step {step}/{STEPS}" for step in range(1, STEPS + 1)
    ]
    assert {(told.phase, told.total_steps) for told in steps} == {("generating", STEPS)}
    assert steps[9].progress == 55.0


def test_steps_are_told_only_while_generating() -> None:
    for _, told in Job(EXPECTED).run(EXPECTED).told:
        assert (told.total_steps is not None) == (told.phase == "generating")


def test_a_preview_is_passed_on_with_its_step() -> None:
    meter = ProgressMeter(0.0)
    meter.observe(PhaseStarted("generating", 2), 0.0)
    assert meter.observe(StepFinished(1, b"small"), 1.0).preview == b"small"
    assert meter.observe(StepFinished(2), 2.0).preview is None
