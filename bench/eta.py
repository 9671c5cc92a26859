"""What the server says how long it will be, against how long it was.

Errors are shares of the time that truly remained: at submission that of the whole job, wait included,
and at half of it that of its second half. What was last told counts down with the clock, as a client
would show it. Kinds of pictures are seen before, as they are on a server that has run for an hour; the
error at the first sight of each kind is told apart from that. Beside them stands how much the pictures'
own times vary on this machine, which what is said beforehand can hardly know.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterable, Sequence

from bench.server import BUNDLED, Client, serving
from bench.stats import Row, percentile
from bench.wishes import Wish, bundled

_AHEAD = 4


def run(*, quick: bool) -> tuple[list[Row], bool]:
    cards = bundled()
    sides, counts = ((128, 256), (4, 12)) if quick else ((128, 256, 384), (4, 12, 30))
    kinds = [(card, side, steps) for card in cards.values() for side in sides for steps in counts]
    chance = random.Random(5)
    seeds = iter(range(10_000))
    with serving(BUNDLED) as port:
        client = _Watcher(port)

        def some(count: int) -> list[Wish]:
            drawn = (chance.choice(kinds) for _ in range(count))
            return [Wish(card, next(seeds), side, steps) for card, side, steps in drawn]

        new = [client.errors([Wish(card, next(seeds), *kind)]) for card, *kind in kinds]
        for card, *kind in kinds:
            client.errors([Wish(card, next(seeds), *kind)])
        alone = [client.errors(some(1)) for _ in range(6 if quick else 40)]
        vary = deviations(client.took.values())
        behind = [client.errors(some(1 + _AHEAD)) for _ in range(3 if quick else 20)]
    noise = (
        f"median {statistics.median(vary):.1%}, p90 {percentile(vary, 0.9):.1%} (n = {len(vary)})"
    )
    return [
        Row("eta", "alone: the times themselves, from the median of their kind", noise),
        *_rows("a kind never drawn here before", new, goal=False),
        *_rows("alone", alone, goal=True),
        *_rows(f"{_AHEAD} jobs ahead", behind, goal=True),
    ], True


def errors(
    submitted: float, promised: float, told: Sequence[tuple[float, float]], ended: float
) -> tuple[float, float]:
    """Errors at submission and at half, as shares of what then remained.

    `told` holds (time, seconds said to remain), in order; `promised` was said at submission.
    """
    total = ended - submitted
    half = submitted + total / 2
    when, said = [(submitted, promised), *(one for one in told if one[0] <= half)][-1]
    left = max(0.0, said - (half - when))
    return abs(promised - total) / total, abs(left - total / 2) / (total / 2)


def deviations(took: Iterable[Sequence[float]]) -> list[float]:
    """How far each is from the median of its kind, as a share of that; of kinds with three or more."""
    return [
        abs(seconds / statistics.median(alike) - 1)
        for alike in took
        if len(alike) >= 3
        for seconds in alike
    ]


class _Watcher:
    """`took` holds the seconds of jobs that were alone, by what they were."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.took: dict[tuple[str, int, int], list[float]] = {}

    def errors(self, wishes: Sequence[Wish]) -> tuple[float, float]:
        """Submit all and see the last one through."""
        client = Client(self._port)
        for wish in wishes:
            job = json.loads(client.ask("POST", "/jobs", wish.body()))
        told = list(client.events("GET", f"/jobs/{job['id']}/events"))
        client.hang_up()
        etas = [
            (event["timestamp"], event["eta_seconds"])
            for event in told
            if event.get("eta_seconds") is not None
        ]
        # The answer may be given before the first event is stored; that one follows at once.
        promised = job["eta_seconds"] or etas[0][1]
        ended = told[-1]["timestamp"]
        if len(wishes) == 1:
            kind = wishes[0].card.id, wishes[0].side, wishes[0].steps
            self.took.setdefault(kind, []).append(ended - job["created"])
        return errors(job["created"], promised, etas, ended)


def _rows(what: str, found: Sequence[tuple[float, float]], *, goal: bool) -> list[Row]:
    rows = []
    for moment, index, most in (("at submission", 0, "20"), ("at half", 1, "8")):
        values = [one[index] for one in found]
        figure = (
            f"median {statistics.median(values):.1%}, p90 {percentile(values, 0.9):.1%} "
            f"(n = {len(values)})"
        )
        rows.append(Row("eta", f"{what}: {moment}", figure, f"<= {most} %" if goal else ""))
    return rows
