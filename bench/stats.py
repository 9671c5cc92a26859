"""Medians, spreads, and the interleaved comparison that every ratio here rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, what came out, and what it should be."""

    bench: str
    what: str
    figure: str
    goal: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> float:
    """The median absolute deviation from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def ms(seconds: Sequence[float]) -> str:
    """Median and spread in milliseconds."""
    return f"{statistics.median(seconds) * 1e3:.2f} ± {spread(seconds) * 1e3:.2f} ms"


def tail(seconds: Sequence[float]) -> str:
    """The percentiles that the number of values can carry, in milliseconds."""
    shares = [0.5, 0.95, 0.99] if len(seconds) >= 100 else [0.5, 0.95]
    names = " / ".join(f"p{share * 100:.0f}" for share in shares)
    figures = " / ".join(f"{percentile(seconds, share) * 1e3:.2f}" for share in shares)
    return f"{names} = {figures} ms (n = {len(seconds)})"


@dataclass(frozen=True)
class Compared:
    """Seconds of two arms that were run in turns."""

    first: list[float]
    second: list[float]

    @property
    def ratio(self) -> float:
        """Median of the first arm over that of the second."""
        return statistics.median(self.first) / statistics.median(self.second)


def in_turns(first: Callable[[], float], second: Callable[[], float], rounds: int) -> Compared:
    """Run A, B, B, A in each round, so that a drift of the machine falls on both arms alike."""
    compared = Compared([], [])
    for _ in range(rounds):
        compared.first.append(first())
        compared.second.append(second())
        compared.second.append(second())
        compared.first.append(first())
    return compared


def verdict(compared: Compared, noise: Compared) -> str:
    """The ratio beside the noise band: what comes out when one arm is compared with itself.

    A difference of less than two bands is none.
    """
    band = max(abs(noise.ratio - 1), spread(noise.second) / statistics.median(noise.second))
    told = "" if abs(compared.ratio - 1) > 2 * band else ", no difference"
    return f"ratio {compared.ratio:.3f}, noise band ± {band:.3f}{told}"


def rates(compared: Compared) -> str:
    """How many times as fast the first arm is, when the seconds are those of one picture.

    The spread is that of the neighbours' ratios, so a drift of the machine is not counted as one.
    """
    pairs = zip(compared.first, compared.second, strict=True)
    gains = [second / first for first, second in pairs]
    rate, other = (1 / statistics.median(arm) for arm in (compared.first, compared.second))
    return (
        f"{1 / compared.ratio:.2f} ± {spread(gains):.2f} times ({rate:.2f} / {other:.2f} a second)"
    )
