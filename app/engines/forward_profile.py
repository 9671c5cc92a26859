"""What a shared forward costs: measured on a real call, for one picture and for several."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from app.domain.errors import Cancelled
from app.engines.base import ALONE
from app.engines.forward_batcher import Call, ForwardBatcher
from app.engines.turnstile import Turnstile

_COUNTS = (1, 2, 4, 8)
_REPEATS = 6
_NO_GAIN = 1.1
"""A batch that costs this much more for each picture than the last one is the last that is tried."""


class FirstCall(ForwardBatcher):
    """Catches the first call of a denoiser that can be shared, and calls off the picture."""

    caught: Call | None = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        self.caught = super().call(args, kwargs)
        raise Cancelled("One call is enough.")


def profile(batcher: ForwardBatcher, call: Call, turnstile: Turnstile) -> Mapping[int, float]:
    """Seconds of one forward by how many pictures share it: the fastest of a few, after a warm-up.

    Seconds of the clock: those of a CPU's cores would count the waiting of its threads for each other,
    which a small forward is full of. Larger numbers are not tried once they gain nothing or do not fit.
    """
    seconds: dict[int, float] = {}
    with turnstile.rider(ALONE) as rider:
        for count in _COUNTS:
            calls = [call] * count
            measured = [rider.do(partial(_once, batcher, calls)) for _ in range(_REPEATS)]
            if any(one is None for one in measured):
                break
            seconds[count] = min(one for one in measured[1:] if one is not None)
            half = seconds.get(count // 2)
            if half is not None and seconds[count] / count > _NO_GAIN * half / (count // 2):
                break
    return seconds


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
