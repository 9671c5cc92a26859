"""The order of the queue: classes, models at hand, shares of owners, and what is due first.

Promised besides: whoever waits starts in the end, whatever else arrives.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from app.scheduling.fair_queue import FairQueue, Ticket

HELD = {"m"}


def queue(aging: float = 10.0, starvation: float = 60.0, **weights: float) -> FairQueue:
    return FairQueue(weights, aging_seconds=aging, starvation_seconds=starvation)


def ticket(
    id: str,
    owner: str = "o",
    since: float = 0.0,
    seconds: float = 1.0,
    model: str = "m",
    *,
    load: float = math.inf,
    background: bool = False,
    deadline: float | None = None,
    again: bool = False,
) -> Ticket:
    return Ticket(
        id=id,
        owner=owner,
        model=model,
        since=since,
        seconds=seconds,
        load=load,
        background=background,
        deadline=deadline,
        again=again,
    )


def order(waiting: FairQueue, now: float = 0.0, *, since_swap: float = math.inf) -> list[str]:
    return [one.id for one in waiting.order(now, HELD, since_swap=since_swap)]


def filled(*tickets: Ticket, given: FairQueue | None = None) -> FairQueue:
    waiting = given or queue()
    for one in tickets:
        waiting.add(one)
    return waiting


def test_equal_jobs_go_in_the_order_of_arrival() -> None:
    assert order(filled(*(ticket(str(n), since=n) for n in (3, 1, 2)))) == ["1", "2", "3"]


def test_a_short_job_passes_a_long_one() -> None:
    assert order(filled(ticket("long", seconds=10), ticket("short", since=5))) == ["short", "long"]


def test_a_long_job_is_passed_for_eight_times_its_length_at_most() -> None:
    long = ticket("long", seconds=10)
    assert order(filled(long, ticket("before", since=71)))[0] == "before"
    assert order(filled(long, ticket("after", since=73)))[0] == "long"


def test_a_deadline_moves_a_job_forward() -> None:
    hurried = ticket("hurried", since=1, deadline=3)
    assert order(filled(ticket("calm"), hurried)) == ["hurried", "calm"]


def test_background_goes_after_everything_interactive_until_it_starves() -> None:
    waiting = filled(ticket("later", background=True), ticket("sooner", since=50, seconds=5))
    assert order(waiting, now=59.9) == ["sooner", "later"]
    assert order(waiting, now=60.0) == ["later", "sooner"]
    assert waiting.rank(ticket("b", background=True), 59.0) == (1, 8.0)
    assert waiting.rank(ticket("b", background=True), 60.0) == (0, 8.0)


def test_a_held_model_goes_first_until_the_other_has_waited_enough() -> None:
    waiting = filled(ticket("other", model="x"), ticket("held", since=5, seconds=1))
    assert order(waiting, now=9.9) == ["held", "other"]
    assert order(waiting, now=10.0) == ["other", "held"]


def test_models_are_not_exchanged_again_at_once() -> None:
    waiting = filled(ticket("other", model="x"), ticket("held", since=5))
    assert order(waiting, now=30.0, since_swap=9.9) == ["held", "other"]
    assert order(waiting, now=30.0, since_swap=10.0) == ["other", "held"]


def test_a_model_that_comes_quickly_is_waited_for_less() -> None:
    waiting = filled(ticket("other", model="x", load=0.5), ticket("held", since=1, seconds=1))
    assert order(waiting, now=3.9) == ["held", "other"]
    assert order(waiting, now=4.0) == ["other", "held"]
    assert order(waiting, now=4.0, since_swap=3.9) == ["held", "other"]
    assert waiting.patience(ticket("x", load=0.5), 1.0) == 3.0


def test_a_job_that_lost_its_worker_goes_before_everything() -> None:
    waiting = filled(ticket("first"), ticket("again", model="x", background=True, again=True))
    assert order(waiting)[0] == "again"


def test_who_sent_many_waits_for_who_sent_one() -> None:
    many = [ticket(f"many{n}", "many", since=n / 10) for n in range(20)]
    waiting = filled(*many, ticket("one", "one", since=5))
    assert order(waiting).index("one") <= 2


def test_a_pause_earns_nothing() -> None:
    waiting = filled(*(ticket(f"busy{n}", "busy", since=n / 100) for n in range(40)))
    for one in waiting.order(0.0, HELD)[:20]:
        waiting.take(one)
    for n in range(20):
        waiting.add(ticket(f"idle{n}", "idle", since=1 + n / 100))
    first = Counter(one[:4] for one in order(waiting)[:20])
    assert abs(first["busy"] - first["idle"]) <= 4


def test_shares_are_by_weight() -> None:
    waiting = queue(heavy=3.0)
    for n in range(40):
        waiting.add(ticket(f"light{n}", "light", since=n))
        waiting.add(ticket(f"heavy{n}", "heavy", since=n))
    first = Counter(one[:5] for one in order(waiting)[:40])
    assert 28 <= first["heavy"] <= 32


def test_the_order_is_the_order_in_which_they_are_taken() -> None:
    rng = random.Random(3)
    waiting = queue()
    for n in range(60):
        seconds = rng.uniform(0.5, 2)
        waiting.add(ticket(str(n), rng.choice("abc"), rng.uniform(0, 5), seconds))
    told = order(waiting)
    taken = []
    while len(waiting):
        one = waiting.order(0.0, HELD)[0]
        waiting.take(one)
        taken.append(one.id)
    # Steps are as coarse as the jobs that still wait, so places may change a little.
    assert max(abs(told.index(one) - place) for place, one in enumerate(taken)) <= 12
    assert told[:3] == taken[:3]


def test_what_a_job_really_cost_is_charged() -> None:
    waiting = filled(ticket("a", "dear"), ticket("b", "cheap", since=0.1))
    for one in waiting.order(0.0, HELD):
        waiting.take(one)
        waiting.settle(one, 50.0 if one.owner == "dear" else 1.0)
    waiting.add(ticket("c", "dear", since=1))
    waiting.add(ticket("d", "cheap", since=2))
    assert order(waiting) == ["d", "c"]


def test_a_guest_is_placed_and_not_added() -> None:
    waiting = filled(ticket("a"), ticket("b", since=2))
    told = waiting.order(0.0, HELD, guest=ticket("guest", since=1))
    assert [one.id for one in told] == ["a", "guest", "b"]
    assert order(waiting) == ["a", "b"]


def test_owners_who_have_gone_are_forgotten() -> None:
    waiting = queue()
    for n in range(1000):
        waiting.add(ticket(str(n), f"owner{n}", since=n))
        waiting.take(waiting.order(n, HELD)[0])
    assert len(list(waiting.owners())) <= 201


@pytest.mark.parametrize("seed", range(8))
def test_nobody_starves(seed: int) -> None:
    """Random arrivals at nine tenths of what one worker can do, with long, unlucky ones among them:
    nobody waits longer than the bounds allow."""
    rng = random.Random(seed)
    waiting = queue(aging=5.0, starvation=30.0, vip=2.0)
    now, free, arrives = 0.0, 0.0, 0.0
    waits: list[float] = []
    for n in itertools.count():
        if n < 400:
            arrives += rng.expovariate(0.9)
            now = arrives
            waiting.add(
                ticket(
                    str(n),
                    rng.choice(["a", "a", "a", "b", "vip"]),
                    now,
                    rng.choice([0.3, 0.5, 0.7, 2.5]),
                    rng.choice(["m", "m", "x"]),
                    background=rng.random() < 0.3,
                )
            )
        else:
            now = max(now, free)
        while len(waiting) and free <= now:
            begins = max(free, min(one.since for one in waiting.order(now, HELD)))
            one = waiting.order(begins, HELD)[0]
            waiting.take(one)
            waits.append(max(0.0, begins - one.since))
            free = max(begins, one.since) + one.seconds
        if n >= 400 and not len(waiting):
            break
    assert len(waits) == 400
    assert max(waits) < 120.0


def test_a_stream_of_urgent_jobs_does_not_keep_a_background_job_for_ever() -> None:
    waiting = filled(ticket("later", background=True, seconds=1.0))
    for now in range(200):
        waiting.add(ticket(f"urgent{now}", "other", since=now, seconds=1.0))
        one = waiting.order(now, HELD)[0]
        waiting.take(one)
        if one.id == "later":
            break
    assert 60 <= now <= 70
