"""When requests come and which: drawn from a seed, so that every arm gets the same. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

T = TypeVar("T")


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times of strangers: `rate` a second on average, from 0 to `seconds`."""
    chance = random.Random(seed)
    times: list[float] = []
    now = chance.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chance.expovariate(rate)
    return times


def mixed(choices: Sequence[tuple[T, float]], count: int, seed: int) -> list[T]:
    """`count` draws from weighted choices. Shares are exact to one request and only the order is
    chance: a short trace would else hold too few of the rare and long ones, or too many."""
    total = sum(weight for _, weight in choices)
    ends = [round(count * done / total) for done in accumulate(weight for _, weight in choices)]
    drawn: list[T] = []
    for (choice, _), end in zip(choices, ends, strict=True):
        drawn += [choice] * (end - len(drawn))
    random.Random(seed).shuffle(drawn)
    return drawn


def zipf(items: Sequence[T], exponent: float = 1.1) -> list[tuple[T, float]]:
    """The items with weights 1, 1/2^s, 1/3^s …"""
    return [(item, 1 / rank**exponent) for rank, item in enumerate(items, start=1)]


def changes(items: Sequence[T]) -> int:
    """How often an item differs from the one before it: the swaps of a first come, first served
    server that holds one model, its first load left out."""
    return sum(before != after for before, after in pairwise(items))


def fewest_changes(arrivals: Sequence[tuple[float, T]], service: float, change: float) -> int:
    """Changes of a server that holds one item, takes `service` seconds for each request and `change` to
    hold another, never rests while somebody waits, and changes only when nobody waits for what it
    holds."""
    now, count, waiting, held = 0.0, 0, list[T](), arrivals[0][1]
    coming = list(reversed(arrivals))
    while coming or waiting:
        now = now if waiting else max(now, coming[-1][0])
        while coming and coming[-1][0] <= now:
            waiting.append(coming.pop()[1])
        if held not in waiting:
            held, count, now = waiting[0], count + 1, now + change
        waiting.remove(held)
        now += service
    return count
