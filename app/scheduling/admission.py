"""Which waiting job may start on a slot, given what runs there.

Runs of one slot share its device step by step, and the lowest rank goes first. To start a job that
would only halve the speed of its equals makes everybody later on average, so equals run to their end;
a job starts beside others only where it shares their forwards, or where it is to go before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from app.domain.lora import Lora

INTERACTIVE, BACKGROUND = 0, 1
"""Classes: the first number of a rank."""

_MUCH_SHORTER = 0.25
"""A job goes before its equals if it takes less than this share of what each of them still needs."""

Kind = tuple[str, int, int]
"""Model, width and height: pictures of one kind can share a forward."""


class Standing(msgspec.Struct, kw_only=True):
    """A waiting or running job as the schedule sees it.

    All seconds are what remains of it when it has the device to itself: to `load` its model (counted
    only where it is not held), before its `steps`, in them, and after them; nine of ten jobs take at
    most `spread` more. `pictures` of it take each step together; `cap` of all jobs' may. It lets jobs
    behind it pass for `patience` seconds. `memory` is bytes of its model. `alone` shares its slot with
    nobody, and pictures share forwards only where their `loras` are the same. Its steps take `pace`
    each, alone; the one that it is in, or stands before, began at most `under_way` seconds ago.
    """

    id: str
    kind: Kind
    rank: tuple[int, float]
    pictures: int = 1
    cap: int = 1
    load: float = 0.0
    before: float = 0.0
    steps: float = 0.0
    after: float = 0.0
    pace: float = 0.0
    under_way: float = 0.0
    spread: float = 0.0
    patience: float = 0.0
    memory: int = 0
    alone: bool = False
    loras: tuple[Lora, ...] = ()

    @property
    def model(self) -> str:
        return self.kind[0]

    @property
    def rest(self) -> float:
        return self.before + self.steps + self.after

    @property
    def stepping(self) -> bool:
        return self.before <= 0.0 < self.steps

    @property
    def finishing(self) -> bool:
        """Only what is not denoising is left: the next job may begin meanwhile."""
        return self.before + self.steps <= 0.0

    def alike(self, other: Standing) -> bool:
        """Whether the two share forwards. Classes never mix: the urgent do not pay for the others."""
        same = self.kind == other.kind and self.loras == other.loras
        return same and self.rank[0] == other.rank[0]


class Room(msgspec.Struct, frozen=True):
    """What a slot has: places for runs, places and bytes for models (0: no limit), and the models that
    it holds now, with their bytes."""

    capacity: int
    held: Mapping[str, int]
    max_models: int = 0
    memory: int = 0

    def fits(self, models: Mapping[str, int]) -> bool:
        """Whether these models may be held at once."""
        few = not self.max_models or len(models) <= self.max_models
        return few and (not self.memory or sum(models.values()) <= self.memory)


def may_start(job: Standing, running: Sequence[Standing], room: Room) -> bool:
    """Whether `job` may start on a slot where these run."""
    if len(running) >= room.capacity:
        return False
    if not running:
        return True
    if job.alone or any(run.alone for run in running):
        return False
    if not _has_model(job, running, room):
        return False
    busy = [run for run in running if not run.finishing]
    if not busy:
        return True
    first = min(busy, key=_rank)
    if job.alike(first):
        sharing = sum(run.pictures for run in busy if run.alike(job))
        if sharing + job.pictures <= min(job.cap, first.cap):
            return True
    return _goes_before(job, busy, room)


def rank_beside(job: Standing, running: Sequence[Standing]) -> tuple[int, float]:
    """The rank with which the job starts among these.

    Who joins a batch takes its rank: otherwise its prompt would be encoded only when the batch is
    done, because every step of the batch goes first.
    """
    first = min((run for run in running if not run.finishing), key=_rank, default=job)
    return min(job.rank, first.rank) if job.alike(first) else job.rank


def _rank(job: Standing) -> tuple[int, float]:
    return job.rank


def _has_model(job: Standing, running: Sequence[Standing], room: Room) -> bool:
    """Whether the model is held, or an interactive job may load it beside those that are in use."""
    if job.model in room.held:
        return True
    used = {run.model: run.memory for run in running} | {job.model: job.memory}
    return job.rank[0] == INTERACTIVE and room.fits(used)


def _goes_before(job: Standing, busy: Sequence[Standing], room: Room) -> bool:
    """Whether the job is to take the device away from all of these at their next step."""
    if any(job.rank >= run.rank for run in busy):
        return False
    if all(job.rank[0] < run.rank[0] for run in busy):
        return True
    needs = job.rest + (0.0 if job.model in room.held else job.load)
    return all(needs < _MUCH_SHORTER * run.rest for run in busy)


def next_to_start(
    waiting: Sequence[Standing], running: Sequence[Standing], room: Room, elapsed: float = 0.0
) -> Standing | None:
    """The first of `waiting`, which are in order, that may start; None if nobody may. They stand as
    they did `elapsed` seconds ago.

    One who may not start lets others pass until its patience ends. Then it closes the door: what
    runs comes to its end, and the slot is free for it.
    """
    for job in waiting:
        if may_start(job, running, room):
            return job
        if job.patience <= elapsed:
            return None
    return None
