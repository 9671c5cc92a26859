"""When every job will be done: the schedule, played through to its end in a moment.

The play follows the rules that the real slots follow: the lowest rank goes first at every step, jobs
that are alike share forwards and slow each other down as was measured, equals run to their end, a
model that is not held is loaded first; a step that was begun, or a picture's decoding, is done before
anybody else's turn comes. It knows nothing of jobs to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from app.scheduling.admission import Kind, Room, Standing, next_to_start, rank_beside

_HORIZON = 24
"""Waiting jobs that are played exactly; what is behind them is taken to go on at the same speed."""

_SPREAD_OF_LOADING = 0.3
"""How much longer than expected nine of ten loads take at most, as a share."""

Slowdown = Callable[[Kind, int], float]
"""How many times longer a forward of so many pictures takes than one of a single picture."""


class Place(msgspec.Struct):
    """A slot: after `free` seconds it takes jobs."""

    free: float
    room: Room
    running: list[Standing]


class Outlook(msgspec.Struct, frozen=True):
    """Seconds from now until a job starts and until it is done, in the median and in nine of ten."""

    start: float
    end: float
    end_p90: float


def forecast(
    places: Sequence[Place], waiting: Sequence[Standing], slowdown: Slowdown
) -> dict[str, Outlook]:
    """The outlook of every job by its id; `waiting` are in order. Nothing that is given is changed."""
    lanes = [_Lane(place, slowdown) for place in places]
    exact, rest = list(waiting[:_HORIZON]), waiting[_HORIZON:]
    for lane in lanes:
        lane.admit(exact)
    while active := [lane for lane in lanes if lane.due < math.inf]:
        lane = min(active, key=lambda one: one.due)
        lane.advance()
        lane.admit(exact)
    told: dict[str, Outlook] = {}
    for lane in lanes:
        told |= lane.told
    _extrapolate(told, waiting[:_HORIZON], rest, len(places))
    return told


class _Lane:
    """One slot at its own point of time."""

    def __init__(self, place: Place, slowdown: Slowdown) -> None:
        self.now = 0.0
        self.told: dict[str, Outlook] = {}
        self._room = place.room
        self._free = place.free
        self._held = dict(place.room.held)
        self._slowdown = slowdown
        self._variance = 0.0
        self._running = [msgspec.structs.replace(job) for job in place.running]
        self._starts = dict.fromkeys((job.id for job in self._running), 0.0)
        self._begun = self._first() if self._running else None
        self._step = 0.0
        if self._begun is not None and self._begun.stepping:
            self._step = self._rest_of_step(self._begun)
            if self._step <= 0.0:
                self._begun = None

    @property
    def due(self) -> float:
        """When something changes here next; never, if nothing runs and none may come."""
        if self._running:
            return self.now + self._next()[0]
        return self._free if self.now < self._free else math.inf

    def admit(self, waiting: list[Standing]) -> None:
        """Start whoever may."""
        if self.now < self._free:
            return
        while waiting:
            room = msgspec.structs.replace(self._room, held=self._held)
            chosen = next_to_start(waiting, self._running, room, self.now)
            if chosen is None:
                return
            waiting.remove(chosen)
            job = msgspec.structs.replace(chosen, rank=rank_beside(chosen, self._running))
            if job.model not in self._held:
                job.before += job.load
                job.spread = math.hypot(job.spread, _SPREAD_OF_LOADING * job.load)
            self._hold(job)
            self._running.append(job)
            self._starts[job.id] = self.now

    def _hold(self, job: Standing) -> None:
        """Its model is there now, and those that had to make room for it are not."""
        self._held.pop(job.model, None)
        used = {run.model for run in self._running}
        for idle in [held for held in self._held if held not in used]:
            if not self._room.fits({**self._held, job.model: job.memory}):
                del self._held[idle]
        self._held[job.model] = job.memory

    def advance(self) -> None:
        """Go to the next change."""
        if not self._running:
            self.now = self._free
            return
        seconds, workers, speed = self._next()
        self.now += seconds
        self._begun, self._step = None, 0.0
        done = seconds * speed
        for job in workers:
            if job.before > 0.0:
                job.before = _less(job.before, done)
            elif job.steps > 0.0:
                job.steps = _less(job.steps, done * self._share(job))
            else:
                job.after = _less(job.after, done)
        for job in [job for job in self._running if job.rest <= 0.0]:
            self._running.remove(job)
            end_p90 = self.now + math.sqrt(self._variance + job.spread**2)
            self.told[job.id] = Outlook(self._starts[job.id], self.now, end_p90)
            self._variance += job.spread**2
        if self._running and (first := self._first()).finishing:
            self._begun = first  # before those who come now

    def _rest_of_step(self, first: Standing) -> float:
        """Seconds to the end of the step that the device is in; what is over of it is taken off."""
        group = self._group(first)
        slower = self._slowdown(first.kind, sum(job.pictures for job in group))
        whole = first.pace * slower / self._share(first)
        over = min(first.under_way, whole)
        for job in group:
            job.steps = max(0.0, job.steps - over / slower * self._share(job))
        return whole - over

    def _share(self, job: Standing) -> float:
        """How its own pictures' slowdown counts: its seconds are for all of them together."""
        return self._slowdown(job.kind, job.pictures)

    def _next(self) -> tuple[float, list[Standing], float]:
        """Seconds to the next change, who works until then, and how fast."""
        first = self._begun or self._first()
        if not first.stepping:
            return (first.before or first.after), [first], 1.0
        group = self._group(first)
        speed = 1.0 / self._slowdown(first.kind, sum(job.pictures for job in group))
        seconds = min(job.steps / (speed * self._share(job)) for job in group)
        return min(seconds, self._step or seconds), group, speed

    def _first(self) -> Standing:
        """Who has the device next: the order of `Turnstile`, in which what is done alone goes before
        the steps of its class, if these can be shared."""
        return min(
            self._running,
            key=lambda job: (job.rank[0], job.stepping or job.cap == 1, job.rank[1], job.stepping),
        )

    def _group(self, first: Standing) -> list[Standing]:
        """Those who take their steps together with it, itself among them."""
        group, pictures = [first], first.pictures
        for job in sorted(self._running, key=lambda one: one.rank):
            if job is not first and job.stepping and job.alike(first):
                if pictures + job.pictures > min(job.cap, first.cap):
                    break
                group.append(job)
                pictures += job.pictures
        return group


def _less(seconds: float, done: float) -> float:
    left = seconds - done
    return left if left > 1e-9 * seconds + 1e-12 else 0.0


def _extrapolate(
    told: dict[str, Outlook], exact: Sequence[Standing], rest: Sequence[Standing], places: int
) -> None:
    """Those beyond the horizon, at the speed of those before it."""
    if not rest:
        return
    last = max((told[job.id].end for job in exact), default=0.0)
    spread = max((told[job.id].end_p90 - told[job.id].end for job in exact), default=0.0)
    work = sum(job.rest for job in exact)
    speed = work / last if last > 0.0 and work > 0.0 else max(1, places)
    ahead = 0.0
    for job in rest:
        start = last + ahead / speed
        ahead += job.rest
        spread = math.hypot(spread, job.spread)
        end = max(last + ahead / speed, start + job.rest)
        told[job.id] = Outlook(start, end, end + spread)
