"""What a shared forward costs: measured on a real call, for one picture and for several."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from app.domain.errors import Cancelled
from app.engines.base import ALONE
from app.engines.forward_batcher import Call, ForwardBatcher
from app.engines.turnstile import Turnstile

_COUNTS = (1, 2, 4, 8)
_ROUNDS, _MOST_ROUNDS = 6, 12
_CLEAR = 0.85
"""A picture in the largest batch that costs at most this share of one alone: no more doubt."""
_HOPELESS = 1.5
"""A number that costs this much more for each picture than the best one is not measured again."""
_SECONDS = 20.0
"""So long is measured at most, and the forward ended that is under way by then."""


class FirstCall(ForwardBatcher):
    """Catches the first call of a denoiser that can be shared, and calls off the picture."""

    caught: Call | None = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        self.caught = super().call(args, kwargs)
        raise Cancelled("One call is enough.")


def profile(batcher: ForwardBatcher, call: Call, turnstile: Turnstile) -> Mapping[int, float]:
    """Seconds of one forward by how many pictures share it: the fastest of a few, after a warm-up.

    The numbers take turns: while a machine is slow, it is slow for all of them. Seconds of the clock:
    those of a CPU's cores would count the waiting of its threads for each other, which a small forward
    is full of. Numbers that gain nothing are soon left out, and so are those that do not fit. While it
    is in doubt whether the largest one gains anything, what disturbs it may pass: it goes on.
    """
    seconds: dict[int, float] = {}
    counts: Iterable[int] = _COUNTS
    until = time.monotonic() + _SECONDS
    with turnstile.rider(ALONE) as rider:
        for turn in range(_MOST_ROUNDS):
            for count in counts:
                took = rider.do(partial(_once, batcher, [call] * count))
                if took is None:  # nor does any larger number fit
                    seconds = {fewer: known for fewer, known in seconds.items() if fewer < count}
                    break
                # The first round warms up; it counts if there is time for no other.
                seconds[count] = took if turn < 2 else min(took, seconds[count])
                if time.monotonic() > until:
                    return seconds
            costs = {count: took / count for count, took in seconds.items()}
            counts = _hopeful(costs) if turn > 2 else list(costs)
            if turn + 1 >= _ROUNDS and not _in_doubt(costs, counts):
                break
    return seconds


def _hopeful(costs: Mapping[int, float]) -> list[int]:
    best = min(costs, key=lambda count: costs[count], default=0)
    return [
        count for count, cost in costs.items() if count <= best or cost <= _HOPELESS * costs[best]
    ]


def _in_doubt(costs: Mapping[int, float], counts: Sequence[int]) -> bool:
    return len(counts) > 1 and costs[max(counts)] > _CLEAR * costs[1]


@torch.inference_mode()
def _once(batcher: ForwardBatcher, calls: list[Call]) -> float | None:
    """Seconds of one forward; None if it did not fit."""
    began = time.perf_counter()
    try:
        results = batcher.forward(calls)
    except torch.OutOfMemoryError:
        return None
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    del results
    return time.perf_counter() - began
