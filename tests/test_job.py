"""A job is the fold of its events: each one changes what it says, and nothing else does."""

from __future__ import annotations

import msgspec
import pytest

from app.domain.errors import OutOfMemory
from app.domain.events import (
    Expired,
    Failed,
    ImageReady,
    JobCancelled,
    JobEvent,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job, JobImage, Status
from app.domain.model_card import Defaults, ModelCard
from app.domain.request import Arguments

CARD = ModelCard(id="m", family="fake", source="/", defaults=Defaults(sampler="euler"))
STEP_2 = Progressed("generating", 37.5, 0.4, 6.0, "Generating step 2/8", 2, 8)


def job_after(*events: JobEvent, start: float = 100.0) -> Job:
    request = CARD.resolve(Arguments(prompt="a fox"), draw_seed=lambda: 1)
    job = Job(id="j", owner="me", door="jobs", request=request, created=start, changed=start)
    for number, event in enumerate(events, start=1):
        job.apply(NumberedEvent(number, start + number, event))
    return job


def test_a_new_job_is_queued_and_has_nothing_to_show() -> None:
    job = job_after()
    assert (job.status, job.ended, job.progress, job.fraction) == ("queued", False, 0.0, 0.0)
    assert job.images == {}


def test_a_waiting_job_tells_its_place_and_the_wait() -> None:
    job = job_after(Queued(3, 20.0, "waiting_for_worker"))
    assert (job.status, job.position, job.eta_seconds) == ("queued", 3, 20.0)
    assert (job.message, job.changed, job.created) == ("waiting_for_worker", 101.0, 100.0)


def test_a_started_job_runs_and_has_no_place_in_the_queue() -> None:
    job = job_after(Queued(1, 20.0, "waiting_for_worker"), Started("local-0", 1))
    assert (job.status, job.position, job.worker, job.attempt) == ("running", 0, "local-0", 1)
    assert not job.ended


def test_progress_is_taken_over_whole() -> None:
    job = job_after(Started("local-0", 1), STEP_2)
    assert (job.progress, job.fraction, job.eta_seconds) == (37.5, 0.4, 6.0)
    assert (job.message, job.step, job.total_steps) == ("Generating step 2/8", 2, 8)


def test_pictures_are_kept_by_index_in_whatever_order_they_come() -> None:
    job = job_after(Started("w", 1), ImageReady(1, "second", 8), ImageReady(0, "first", 7))
    assert job.images == {0: JobImage(0, "first", 7), 1: JobImage(1, "second", 8)}


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (Succeeded(), "succeeded"),
        (Failed("out_of_memory", "No room."), "failed"),
        (JobCancelled(), "cancelled"),
        (Expired("deadline_exceeded", "Too late."), "expired"),
    ],
)
def test_each_end_has_its_status_and_leaves_nothing_to_wait_for(
    end: JobEvent, status: Status
) -> None:
    job = job_after(Started("w", 1), STEP_2, end)
    assert (job.status, job.ended, job.eta_seconds) == (status, True, 0.0)
    assert job.eta_at(0.0) == job.eta_at(1e9) == 0.0


def test_success_is_the_whole_of_it() -> None:
    job = job_after(Started("w", 1), STEP_2, Succeeded())
    assert (job.progress, job.fraction, job.error_code) == (100.0, 1.0, None)


def test_a_failure_keeps_how_far_it_came_and_says_why() -> None:
    job = job_after(Started("w", 1), STEP_2, Failed(OutOfMemory.code, "No room."))
    assert (job.progress, job.fraction) == (37.5, 0.4)
    assert (job.error_code, job.error_message) == ("out_of_memory", "No room.")


def test_an_expired_job_says_why() -> None:
    job = job_after(Queued(1, 9.0, "waiting_for_worker"), Expired("deadline_exceeded", "Too late."))
    assert (job.error_code, job.error_message) == ("deadline_exceeded", "Too late.")


def test_a_second_attempt_waits_and_starts_again() -> None:
    again = Queued(1, 9.0, "waiting_for_worker")
    assert job_after(Started("local-0", 1), STEP_2, again).status == "queued"
    job = job_after(Started("local-0", 1), STEP_2, again, Started("local-1", 2))
    assert (job.status, job.worker, job.attempt) == ("running", "local-1", 2)


def test_the_estimate_runs_down_with_the_clock_and_stops_at_zero() -> None:
    job = job_after(Started("w", 1), STEP_2)  # 6 seconds at 102
    assert [job.eta_at(now) for now in (102.0, 104.5, 108.0, 900.0)] == [6.0, 3.5, 0.0, 0.0]


def test_a_clock_that_jumps_back_does_not_lengthen_the_estimate() -> None:
    assert job_after(Started("w", 1), STEP_2).eta_at(50.0) == 6.0


def test_a_job_survives_being_stored() -> None:
    job = job_after(Started("w", 1), STEP_2, ImageReady(0, "first", 7), Succeeded())
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job
