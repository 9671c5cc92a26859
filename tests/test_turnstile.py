"""Who uses a device next, and with whom.

Promised: one piece at a time, the lowest rank first at every step; equal pieces of one class are done
together, up to what each of them allows; a run between two steps is waited for, briefly and once; who
has waited long goes first; whoever leaves or fails, the others get what is theirs.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from app.engines import turnstile
from app.engines.base import ALONE, Sharing
from app.engines.turnstile import Rider, Turnstile

LONG = 20.0
"""Seconds after which a test is given up. Nothing that passes waits so long."""


class Device:
    """Does pieces and notes them; each waits for `go` if a test holds it."""

    def __init__(self) -> None:
        self.done: list[list[Any]] = []
        self.busy = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.at_once = 0
        self.most_at_once = 0

    def together(self, payloads: Sequence[Any]) -> list[Any]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.done.append(list(payloads))
        self.busy.set()
        assert self.go.wait(LONG)
        self.at_once -= 1
        return [f"{payload} done" for payload in payloads]


class Run(threading.Thread):
    """One run in its own thread: does `work` with its rider and keeps how that ended."""

    def __init__(
        self,
        one: Turnstile,
        work: Callable[[Rider], Any],
        sharing: Sharing = ALONE,
        check: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.result: Any = None
        self.error: BaseException | None = None
        self._given = one, work, sharing, check
        self.start()

    def run(self) -> None:
        one, work, sharing, check = self._given
        try:
            with one.rider(sharing, check) as rider:
                self.result = work(rider)
        except BaseException as error:
            self.error = error

    def end(self) -> Any:
        self.join(LONG)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def one() -> Iterator[Turnstile]:
    made = Turnstile()
    yield made
    made.close()


@pytest.fixture
def device() -> Device:
    return Device()


def shared(device: Device, payload: Any, kind: str = "kind") -> Callable[[Rider], Any]:
    return lambda rider: rider.share(kind, payload, device.together)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.0005)


def waiting(one: Turnstile, count: int) -> None:
    until(lambda: len(one._pending) == count)


@contextmanager
def busy(one: Turnstile, device: Device) -> Iterator[None]:
    """Inside, the device does a first piece that ends when this does."""
    device.go.clear()
    device.busy.clear()
    first = Run(one, shared(device, "first", "first"))
    assert device.busy.wait(LONG)
    yield
    device.go.set()
    first.end()


def queued(
    one: Turnstile, device: Device, runs: Sequence[tuple[Any, Sharing]], kind: str = "kind"
) -> list[Any]:
    """Let runs come in this order while the device is busy; what each gets."""
    with busy(one, device):
        started = []
        for count, (payload, sharing) in enumerate(runs, 1):
            started.append(Run(one, shared(device, payload, kind), sharing))
            waiting(one, count)
    return [run.end() for run in started]


def returning(one: Turnstile, sharing: Sharing, kind: str = "kind") -> tuple[Rider, Any]:
    """A rider that has just finished a step and is expected with its next one."""
    standing = one.rider(sharing)
    rider = standing.__enter__()
    rider.kind, rider.returning = kind, True
    return rider, standing


# -- order -----------------------------------------------------------------------------------------


def test_one_piece_is_done_at_a_time_and_each_run_gets_its_own_result(
    one: Turnstile, device: Device
) -> None:
    def work(index: int) -> Callable[[Rider], list[Any]]:
        return lambda rider: [
            rider.share(f"kind {index}", (index, step), device.together) for step in range(20)
        ]

    runs = [Run(one, work(index), Sharing((0, 0.0), 8)) for index in range(4)]
    for index, run in enumerate(runs):
        assert run.end() == [f"{(index, step)} done" for step in range(20)]
    assert device.most_at_once == 1


def test_the_lowest_rank_goes_first_at_the_next_step(one: Turnstile, device: Device) -> None:
    ranks = [(1, 0.0), (0, 5.0), (0, 2.0), (1, -3.0)]
    queued(one, device, [(rank, Sharing(rank)) for rank in ranks])
    assert device.done[1:] == [[(0, 2.0)], [(0, 5.0)], [(1, -3.0)], [(1, 0.0)]]


def test_of_equal_rank_who_came_first_goes_first(one: Turnstile, device: Device) -> None:
    queued(one, device, [("a", ALONE), ("b", ALONE), ("c", ALONE)])
    assert device.done[1:] == [["a"], ["b"], ["c"]]


def test_an_urgent_run_is_between_two_steps_of_a_long_one(one: Turnstile, device: Device) -> None:
    device.go.clear()

    def long(rider: Rider) -> None:
        for step in range(3):
            rider.share("kind", step, device.together)

    slow = Run(one, long, Sharing((1, 0.0)))
    assert device.busy.wait(LONG)
    urgent = Run(one, shared(device, "urgent"), Sharing((0, 0.0)))
    waiting(one, 1)
    device.go.set()
    urgent.end()
    slow.end()
    assert device.done == [[0], ["urgent"], [1], [2]]


def test_a_piece_older_than_starvation_goes_first(device: Device) -> None:
    one = Turnstile(starvation=0.05)
    with busy(one, device):
        old = Run(one, shared(device, "old"), Sharing((1, 0.0)))
        waiting(one, 1)
        until(lambda: time.monotonic() - one._pending[0].came > 0.05)
        urgent = Run(one, shared(device, "urgent"), Sharing((0, 0.0)))
        waiting(one, 2)
    old.end()
    urgent.end()
    assert device.done[1:] == [["old"], ["urgent"]]
    one.close()


def test_what_leads_up_to_shared_steps_goes_before_those_of_its_class(
    one: Turnstile, device: Device
) -> None:
    def alone(rider: Rider) -> Any:
        return rider.do(lambda: device.together(["alone"]))

    with busy(one, device):
        runs = [Run(one, shared(device, "step"), Sharing((0, 0.0), 8))]
        waiting(one, 1)
        runs.append(Run(one, alone, Sharing((0, 9.0), 8)))
        waiting(one, 2)
        runs.append(Run(one, alone, Sharing((1, 0.0), 8)))
        waiting(one, 3)
    for run in runs:
        run.end()
    assert device.done[1:] == [["alone"], ["step"], ["alone"]]


# -- together --------------------------------------------------------------------------------------


def test_equal_kinds_share_up_to_batch(one: Turnstile, device: Device) -> None:
    three = Sharing((0, 0.0), 3)
    results = queued(one, device, [(index, three) for index in range(5)])
    assert device.done[1:] == [[0, 1, 2], [3, 4]]
    assert results == [f"{index} done" for index in range(5)]


def test_other_kinds_do_not_share(one: Turnstile, device: Device) -> None:
    many = Sharing((0, 0.0), 8)
    with busy(one, device):
        runs = []
        for count, kind in enumerate("abab", 1):
            runs.append(Run(one, shared(device, kind, kind), many))
            waiting(one, count)
    for run in runs:
        run.end()
    assert device.done[1:] == [["a", "a"], ["b", "b"]]


def test_classes_never_share(one: Turnstile, device: Device) -> None:
    queued(one, device, [(rank, Sharing((rank, 0.0), 8)) for rank in (1, 0, 1, 0)])
    assert device.done[1:] == [[0, 0], [1, 1]]


def test_who_is_to_be_alone_is_alone_whoever_would_share(one: Turnstile, device: Device) -> None:
    many, single = Sharing((0, 0.0), 8), Sharing((0, 0.0), 1)
    queued(one, device, [("a", many), ("alone", single), ("b", many)])
    assert sorted(device.done[1:]) == [["a", "b"], ["alone"]]


def test_a_batch_is_no_larger_than_any_of_its_runs_allows(one: Turnstile, device: Device) -> None:
    many, two = Sharing((0, 0.0), 8), Sharing((0, 0.0), 2)
    queued(one, device, [("a", many), ("b", two), ("c", many), ("d", many)])
    for batch in device.done[1:]:
        assert "b" not in batch or len(batch) <= 2


def test_a_run_is_told_how_many_shared_and_how_long_it_waited(
    one: Turnstile, device: Device
) -> None:
    riders: list[Rider] = []

    def work(rider: Rider) -> None:
        riders.append(rider)
        rider.share("kind", "payload", device.together)

    with busy(one, device):
        runs = [Run(one, work, Sharing((0, 0.0), 8)) for _ in range(2)]
        waiting(one, 2)
        since = time.monotonic()
        until(lambda: time.monotonic() - since > 0.02)
    for run in runs:
        run.end()
    assert [rider.batch for rider in riders] == [2, 2]
    assert min(rider.waited for rider in riders) >= 0.02


def test_work_of_no_kind_is_done_alone(one: Turnstile, device: Device) -> None:
    many = Sharing((0, 0.0), 8)
    with busy(one, device):
        runs = [
            Run(one, lambda rider: rider.do(lambda: device.together(["alone"])), many)
            for _ in range(3)
        ]
        waiting(one, 3)
    for run in runs:
        assert run.end() == ["alone done"]
    assert device.done[1:] == [["alone"]] * 3


# -- waiting for each other ------------------------------------------------------------------------


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(turnstile, "_PATIENCE", (0.0, seconds, seconds))


def test_a_run_between_two_steps_is_waited_for(
    one: Turnstile, device: Device, patience: Callable[[float], None]
) -> None:
    patience(LONG)
    rider, standing = returning(one, Sharing((0, 0.0), 8))
    other = Run(one, shared(device, "other"), Sharing((0, 0.0), 8))
    waiting(one, 1)
    assert rider.share("kind", "mine", device.together) == "mine done"
    other.end()
    assert device.done == [["other", "mine"]]
    standing.__exit__(None, None, None)


def test_a_more_urgent_run_between_two_steps_is_waited_for(
    one: Turnstile, device: Device, patience: Callable[[float], None]
) -> None:
    patience(LONG)
    rider, standing = returning(one, Sharing((0, 0.0)), "another kind")
    other = Run(one, shared(device, "other"), Sharing((1, 0.0)))
    waiting(one, 1)
    rider.share("another kind", "mine", device.together)
    standing.__exit__(None, None, None)
    other.end()
    assert device.done == [["mine"], ["other"]]


def test_an_urgent_run_is_waited_for_from_its_prompt_to_its_decoding(
    one: Turnstile, device: Device, patience: Callable[[float], None]
) -> None:
    patience(LONG)
    with one.rider(Sharing((0, 0.0))) as rider:
        other = Run(one, shared(device, "other"), Sharing((1, 0.0)))
        waiting(one, 1)
        for _ in range(2):  # encoded, with its own thread's work in between
            assert rider.do(lambda: len(device.done)) == 0
        rider.share("another kind", "mine", device.together)
        rider.last_shared()
        assert rider.do(lambda: len(device.done)) == 1
        other.end()  # though the rider has not left
    assert device.done == [["mine"], ["other"]]


@pytest.mark.parametrize(("rank", "waits"), [((0, 0.0), 0), ((0, 1.0), 1), ((1, 0.0), 1)])
def test_who_goes_on_alone_is_waited_for_by_those_behind_it_only(
    one: Turnstile,
    device: Device,
    patience: Callable[[float], None],
    rank: tuple[int, float],
    waits: int,
) -> None:
    patience(LONG)
    rider, standing = returning(one, Sharing((0, 0.0), 8))
    rider.last_shared()
    began = time.monotonic()
    other = Run(one, shared(device, "other"), Sharing(rank, 8))
    if waits:
        waiting(one, 1)
    else:
        other.end()
        assert time.monotonic() - began < LONG / 2
    assert rider.do(lambda: len(device.done)) == 1 - waits
    standing.__exit__(None, None, None)
    other.end()


def test_who_works_alone_beside_the_others_is_not_waited_for(
    device: Device, patience: Callable[[float], None]
) -> None:
    patience(LONG)
    one = Turnstile(overlap=True)
    with one.rider(Sharing((0, 0.0))) as rider:  # with its prompt now
        began = time.monotonic()
        Run(one, shared(device, "other"), Sharing((1, 0.0))).end()
        rider.last_shared()  # and decoded now
        Run(one, shared(device, "another"), Sharing((0, 1.0))).end()
        assert time.monotonic() - began < LONG / 2
    one.close()


def test_a_run_is_waited_for_only_briefly_and_only_once(
    one: Turnstile, device: Device, patience: Callable[[float], None]
) -> None:
    patience(0.1)
    rider, standing = returning(one, Sharing((0, 0.0), 8))
    began = time.monotonic()
    Run(one, shared(device, "first"), Sharing((0, 0.0), 8)).end()
    assert time.monotonic() - began >= 0.1
    assert not rider.returning
    patience(LONG)
    Run(one, shared(device, "second"), Sharing((0, 0.0), 8)).end()
    assert time.monotonic() - began < LONG / 2
    standing.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["stepped aside", "left", "its thread died"])
def test_who_will_not_return_is_not_waited_for(
    one: Turnstile, device: Device, patience: Callable[[float], None], how: str
) -> None:
    patience(LONG)
    rider, standing = returning(one, Sharing((0, 0.0), 8))
    if how == "its thread died":
        gone = threading.Thread(target=str)
        gone.start()
        gone.join()
        rider.thread = gone
    began = time.monotonic()
    run = Run(one, shared(device, "other"), Sharing((0, 0.0), 8))
    if how != "its thread died":
        waiting(one, 1)
    if how == "stepped aside":
        rider.step_aside()
    if how == "left":
        standing.__exit__(None, None, None)
    run.end()
    assert time.monotonic() - began < LONG / 2
    if how != "left":
        standing.__exit__(None, None, None)


@pytest.mark.parametrize(
    "sharing", [Sharing((1, 0.0), 8), Sharing((0, 1.0), 1)], ids=["of another class", "alone"]
)
def test_who_would_not_share_is_not_waited_for(
    one: Turnstile, device: Device, patience: Callable[[float], None], sharing: Sharing
) -> None:
    patience(LONG)
    _, standing = returning(one, sharing)
    began = time.monotonic()
    Run(one, shared(device, "other"), Sharing((0, 0.0), 8)).end()
    assert time.monotonic() - began < LONG / 2
    standing.__exit__(None, None, None)


def test_a_rider_that_leaves_is_forgotten(one: Turnstile, device: Device) -> None:
    payload = Device()  # anything that can be referred to weakly
    gone = weakref.ref(payload)
    Run(one, shared(device, payload)).end()
    assert one._riders == set()
    device.done.clear()
    del payload
    until(lambda: gc.collect() >= 0 and gone() is None)


# -- leaving and failing ---------------------------------------------------------------------------


class Stop(Exception):
    """The run was called off."""


def test_a_run_called_off_while_waiting_leaves_at_once(one: Turnstile, device: Device) -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stop

    with busy(one, device):
        run = Run(one, shared(device, "called off"), ALONE, check)
        waiting(one, 1)
        stop.set()
        with pytest.raises(Stop):
            run.end()  # the device is still busy with the first piece
        assert one._pending == []
    assert device.done == [["first"]]


def test_a_run_called_off_while_its_piece_is_done_leaves_when_it_is(
    one: Turnstile, device: Device
) -> None:
    stop, checked = threading.Event(), threading.Event()

    def check() -> None:
        if stop.is_set():
            checked.set()
            raise Stop

    device.go.clear()
    many = Sharing((0, 0.0), 8)
    with busy(one, device):
        run = Run(one, shared(device, "called off"), many, check)
        neighbour = Run(one, shared(device, "neighbour"), many)
        waiting(one, 2)
        device.busy.clear()
    assert neighbour.end() == "neighbour done"
    device.go.clear()
    device.busy.clear()
    run.join(LONG)
    run = Run(one, shared(device, "called off"), many, check)
    assert device.busy.wait(LONG)
    stop.set()
    assert checked.wait(LONG)
    assert run.is_alive()  # its tensors are in use
    device.go.set()
    with pytest.raises(Stop):
        run.end()


def test_an_exception_in_together_reaches_all_who_shared(one: Turnstile, device: Device) -> None:
    def fail(payloads: Sequence[Any]) -> list[Any]:
        raise Stop(str(len(payloads)))

    many = Sharing((0, 0.0), 8)
    with busy(one, device):
        runs = [Run(one, lambda rider: rider.share("kind", 1, fail), many) for _ in range(3)]
        waiting(one, 3)
    for run in runs:
        with pytest.raises(Stop, match="3"):
            run.end()
    assert Run(one, shared(device, "next")).end() == "next done"


def test_results_that_are_exceptions_reach_their_own_run(one: Turnstile, device: Device) -> None:
    def odd(payloads: Sequence[int]) -> list[Any]:
        return [Stop(str(payload)) if payload % 2 else payload for payload in payloads]

    def work(payload: int) -> Callable[[Rider], Any]:
        return lambda rider: rider.share("kind", payload, odd)

    many = Sharing((0, 0.0), 8)
    with busy(one, device):
        runs = [Run(one, work(index), many) for index in range(4)]
        waiting(one, 4)
    assert (runs[0].end(), runs[2].end()) == (0, 2)
    for index in (1, 3):
        with pytest.raises(Stop, match=str(index)):
            runs[index].end()


def test_a_wrong_number_of_results_is_everybodys_error_and_not_the_end(
    one: Turnstile, device: Device
) -> None:
    run = Run(one, lambda rider: rider.share("kind", 1, lambda payloads: []))
    with pytest.raises(ValueError, match="results"):
        run.end()
    assert Run(one, shared(device, "next")).end() == "next done"


def test_work_that_fails_alone_fails_for_its_own_run(one: Turnstile, device: Device) -> None:
    def fail() -> None:
        raise Stop

    with pytest.raises(Stop):
        Run(one, lambda rider: rider.do(fail)).end()
    assert Run(one, shared(device, "next")).end() == "next done"


def test_a_turnstile_that_closes_does_what_still_waits(one: Turnstile, device: Device) -> None:
    with busy(one, device):
        run = Run(one, shared(device, "late"))
        waiting(one, 1)
        one.close()
    assert run.end() == "late done"
    assert one._thread is not None
    one._thread.join(LONG)
    assert not one._thread.is_alive()
    with pytest.raises(RuntimeError, match="no more work"):
        Run(one, shared(device, "too late")).end()
    assert device.done == [["first"], ["late"]]
