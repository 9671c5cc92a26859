"""Open-loop loads, and how much of one a server finishes in good time.

A request is in good time when it is answered within three times what its kind takes on an idle server.
Both arms have the same deadlines, measured on the one that takes requests as they come.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from bench.load import Measured, Plan, Shot, fire
from bench.traces import mixed, poisson
from bench.wishes import Wish

PATIENCE = 3.0
"""How many times the unloaded latency somebody waits."""


@dataclass(frozen=True)
class Kind:
    """Pictures of one sort. `weight` is their share of the requests."""

    name: str
    wish: Wish
    weight: float
    priority: str = "interactive"

    def shot(self, seed: int, due: float = 0.0) -> Shot:
        return Shot(replace(self.wish, seed=seed).body(priority=self.priority), due, self.name)


@dataclass(frozen=True)
class Unloaded:
    """What an idle server needs: seconds by kind, and requests a second of the mixture in a row."""

    seconds: dict[str, float]
    capacity: float


def unloaded(port: int, kinds: Sequence[Kind], rounds: int) -> Unloaded:
    """One client, one request after the other, each kind as often; a first round is thrown away."""
    names = [kind for _ in range(rounds + 1) for kind in kinds]
    shots = [kind.shot(seed) for seed, kind in enumerate(names)]
    outcomes = fire(Plan(port, shots, 1)).outcomes[len(kinds) :]
    seconds = {
        kind.name: statistics.median(one.latency for one in outcomes if one.kind == kind.name)
        for kind in kinds
    }
    total = sum(kind.weight for kind in kinds)
    mean = sum(seconds[kind.name] * kind.weight for kind in kinds) / total
    return Unloaded(seconds, 1 / mean)


def mixture(kinds: Sequence[Kind], rate: float, seconds: float, seed: int) -> list[Shot]:
    """Poisson arrivals of kinds by their weights."""
    times = poisson(rate, seconds, seed)
    drawn = mixed([(kind, kind.weight) for kind in kinds], len(times), seed)
    return [
        kind.shot(seed * 1000 + place, due)
        for place, (kind, due) in enumerate(zip(drawn, times, strict=True))
    ]


def impatient(
    shots: Sequence[Shot], share: float, usual: dict[str, float], seed: int
) -> list[Shot]:
    """The same, but a share of the clients leaves within the usual time of its kind."""
    chance = random.Random(seed)
    leaving = set(chance.sample(range(len(shots)), round(share * len(shots))))
    return [
        msgspec.structs.replace(shot, leave_after=chance.uniform(0.1, 1.0) * usual[shot.kind])
        if place in leaving
        else shot
        for place, shot in enumerate(shots)
    ]


def in_time(measured: Measured, shots: Sequence[Shot], usual: dict[str, float]) -> int:
    """How many of those that stayed were answered in good time."""
    return sum(
        one.latency <= PATIENCE * usual[one.kind]
        for one, shot in zip(measured.outcomes, shots, strict=True)
        if shot.leave_after is None
    )
