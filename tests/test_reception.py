"""How much a key may: exact, also for who asks many times at once."""

from __future__ import annotations

import pytest

from app.domain.access import Allowance
from app.domain.errors import QuotaSpent, RateLimited, UploadsFull
from app.domain.job import Job
from app.reception import Reception, bytes_in
from tests.stored import make_job


class World:
    """A reception, and what it sees."""

    def __init__(self, **allowed: float) -> None:
        self.now, self.spent = 100.0, 0.0
        self.jobs: list[Job] = []
        self.reception = Reception(
            allowance=lambda _: Allowance(**allowed),  # type: ignore[arg-type]
            spent=lambda _: self.spent,
            seconds_of=lambda _: None,
            unfinished=lambda: self.jobs,
            expected=lambda _: 2.0,
            max_queue=10,
            max_bytes=1000,
            clock=lambda: self.now,
        )


def test_requests_come_back_with_time() -> None:
    world = World(requests_per_minute=2)
    assert [world.reception.knock("ann") for _ in range(2)][-1].left == 0  # type: ignore[union-attr]
    with pytest.raises(RateLimited) as refused:
        world.reception.knock("ann/user")
    assert refused.value.retry_after == 30
    world.reception.knock("bob")
    world.now += 29.9
    with pytest.raises(RateLimited):
        world.reception.knock("ann")
    world.now += 0.2
    world.reception.knock("ann")
    assert World().reception.knock("ann") is None


def test_places_in_the_queue_count_from_the_moment_that_they_are_asked_for() -> None:
    world = World(queue_share=0.25)
    job = make_job(owner="ann/user")
    with world.reception.place("ann", job.request), world.reception.place("ann/2", job.request):
        with pytest.raises(RateLimited), world.reception.place("ann", job.request):
            pass
        with world.reception.place("bob", job.request):
            pass
    world.jobs = [job, make_job(owner="ann")]
    with pytest.raises(RateLimited), world.reception.place("ann", job.request):
        pass
    job.status = "running"
    with world.reception.place("ann", job.request):
        pass


def test_seconds_count_before_they_are_spent() -> None:
    world = World(gpu_seconds_per_day=10)
    request = make_job().request
    world.spent = 7.0
    with world.reception.place("ann", request):
        world.jobs = [make_job(owner="ann")]
        with pytest.raises(QuotaSpent) as refused, world.reception.place("ann", request):
            pass
        assert 1 <= refused.value.retry_after <= 59
    with world.reception.place("ann", request):
        pass


def test_bytes_that_wait_have_a_limit_and_come_free() -> None:
    world = World()
    picture = make_job(image=b"\0" * 300, mask_image=b"\0" * 100).request
    assert bytes_in(picture) == 400
    with world.reception.place("ann", picture), world.reception.place("bob", picture):
        with pytest.raises(UploadsFull), world.reception.place("bob", picture):
            pass
        with world.reception.place("bob", make_job().request):
            pass
    world.jobs = [make_job(image=b"\0" * 700)]
    with pytest.raises(UploadsFull):
        world.reception.receive(301)
    world.reception.receive(300)
    world.reception.release(300)
    world.jobs = []
    with world.reception.place("ann", picture):
        pass


def test_how_many_run_at_once() -> None:
    world = World(running_jobs=2)
    one, other = make_job(owner="ann"), make_job(owner="ann/user")
    assert world.reception.may_run("ann", [one])
    assert not world.reception.may_run("ann/third", [one, other])
    assert world.reception.may_run("bob", [one, other])
    assert World().reception.may_run("ann", [one] * 100)
