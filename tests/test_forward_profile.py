"""What a shared forward costs is measured well on a machine that is not, and in bounded time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest
import torch

from app.engines import forward_profile
from app.engines.forward_batcher import Call, ForwardBatcher
from app.engines.turnstile import Turnstile
from app.scheduling.batch_profile import profile_of

GAINS: Mapping[int, float] = {1: 0.036, 2: 0.05, 4: 0.1, 8: 0.19}


class Machine:
    """Its clock goes on by what a forward costs, `slow` times as much for some forwards."""

    def __init__(self, cost: Mapping[int, float], slow: Callable[[int], float] = lambda _: 1.0):
        self.cost, self.slow = cost, slow
        self.now = 0.0
        self.done: Counter[int] = Counter()

    def forward(self, calls: list[Call]) -> list[None]:
        self.now += self.cost[len(calls)] * self.slow(self.done.total())
        self.done[len(calls)] += 1
        if self.cost[len(calls)] == 0.0:
            raise torch.OutOfMemoryError
        return [None] * len(calls)

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.fixture
def turnstile() -> Iterator[Turnstile]:
    made = Turnstile()
    yield made
    made.close()


def measured(
    machine: Machine, turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> Mapping[int, float]:
    monkeypatch.setattr(forward_profile, "time", machine)
    call: Any = object()
    return forward_profile.profile(cast(ForwardBatcher, machine), call, turnstile)


@pytest.mark.parametrize("begin", range(24))
def test_a_slow_while_changes_nothing(
    begin: int, turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two rounds it is three times as slow, whenever that begins."""
    machine = Machine(GAINS, lambda done: 3.0 if begin <= done < begin + 8 else 1.0)
    assert measured(machine, turnstile, monkeypatch) == pytest.approx(GAINS)


def test_the_first_forward_of_each_number_does_not_count(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(GAINS, lambda done: 0.1 if done < 4 else 1.0)
    assert measured(machine, turnstile, monkeypatch) == pytest.approx(GAINS)


def test_what_does_not_fit_is_left_out(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({**GAINS, 4: 0.0})
    assert measured(machine, turnstile, monkeypatch) == pytest.approx({1: 0.036, 2: 0.05})
    assert machine.done[4] == 1
    assert machine.done[8] == 0


def test_hopeless_numbers_are_not_measured_on_and_on(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({1: 0.04, 2: 0.06, 4: 0.12, 8: 0.5})
    found = measured(machine, turnstile, monkeypatch)
    assert machine.done == {1: 6, 2: 6, 4: 6, 8: 4}
    assert profile_of("m", "cpu", (256, 256), found).cap == 4


def test_the_first_number_is_not_hopeless_because_the_others_gain_so_much(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1})
    measured(machine, turnstile, monkeypatch)
    assert set(machine.done.values()) == {6}


def test_while_there_is_doubt_it_goes_on(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something takes its time from large forwards alone, as it well may: they are longer."""
    machine = Machine(GAINS)
    machine.slow = lambda done: 1.4 if done % 4 == 3 and done < 32 else 1.0
    assert measured(machine, turnstile, monkeypatch) == pytest.approx(GAINS)
    assert machine.done[8] == 9
    never = Machine({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08})
    measured(never, turnstile, monkeypatch)
    assert never.done[8] == 12


def test_a_slow_device_is_not_held_up_for_long(
    turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({1: 9.0, 2: 12.0, 4: 20.0, 8: 40.0})
    assert measured(machine, turnstile, monkeypatch) == {1: 9.0, 2: 12.0}
    assert machine.now == 21.0
