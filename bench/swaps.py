"""Two models and room for one: how often they change places, against first come, first served.

Strangers ask for the models by Zipf's law. First come, first served changes models as often as
neighbours in the trace differ, which is counted there; its latencies are the reference server's, which
holds one stock pipeline. The server's changes are counted from its jobs' events: in the order in which
their work began, wherever the model is another than before. Both serve the same trace, in turns.

Where the queue is often empty, few changes cannot be had. For comparison, and no bound: a server that
never rests and changes only when nobody waits for what it holds, with the reference's seconds for a
picture and for a change (of its own trial in the order of the models, and as it came).
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.blocks import told
from bench.load import Measured, Plan, Shot, fire
from bench.reference.serving import reference
from bench.server import BUNDLED, Client, serving
from bench.stats import Row, percentile
from bench.traces import changes, fewest_changes, zipf
from bench.wishes import Wish, bundled
from bench.workloads import Kind, mixture

_LOADS = (0.8, 1.0)
"""Shares of what the reference server can do at all."""


def run(*, quick: bool) -> tuple[list[Row], bool]:
    cards = bundled()
    models = [cards["sketch"], cards["sketch-flux"]]
    kinds = [Kind(card.id, Wish(card, 0, 128, 8), weight) for card, weight in zipf(models)]
    settings = {
        **BUNDLED,
        "EASEL_PRELOAD": '["sketch"]',
        "EASEL_MAX_MODELS": "1",
        "EASEL_MAX_QUEUE": "5000",
    }
    rows: list[Row] = []
    with serving(settings) as ours, reference("tutorial", models, 1) as theirs:
        trial = mixture(kinds, 1.0, 10.0 if quick else 30.0, seed=11)
        for port in (ours, theirs):
            fire(Plan(port, trial[:4], 1))
        mixed = fire(Plan(theirs, trial, 1)).wall
        sorted_ = fire(Plan(theirs, sorted(trial, key=lambda shot: shot.kind), 1)).wall
        capacity, service = len(trial) / mixed, sorted_ / len(trial)
        change = max(0.0, mixed - sorted_) / max(1, changes([shot.kind for shot in trial]) - 1)
        for load in _LOADS[:1] if quick else _LOADS:
            shots = mixture(kinds, load * capacity, (15 if quick else 80) / capacity, seed=12)
            arrivals = [(shot.due, shot.kind) for shot in shots]
            fewest = fewest_changes(arrivals, service, change)
            rows += _compared(ours, theirs, shots, capacity, fewest, rounds=1 if quick else 2)
    return rows, True


def _compared(
    ours: int, theirs: int, shots: Sequence[Shot], capacity: float, fewest: int, rounds: int
) -> list[Row]:
    waits: dict[int, list[float]] = {ours: [], theirs: []}
    swaps: list[int] = []
    loads: list[float] = []
    doubts: set[str] = set()
    for port in (ours, theirs, theirs, ours)[: 2 * rounds]:
        measured = fire(Plan(port, list(shots), limit=shots[-1].due + 120))
        waits[port].extend(measured.latencies())
        doubts |= {measured.doubts} - {""}
        if port == ours:
            count, seconds = _changes(port, measured, shots)
            swaps.append(count)
            loads += seconds
    fifo = changes([shot.kind for shot in shots])
    share = sum(swaps) / len(swaps) / fifo
    tails = [percentile(waits[port], 0.95) for port in (ours, theirs)]
    rate = f"{len(shots)} requests, {len(shots) / shots[-1].due:.2f} a second of {capacity:.2f}"
    return [
        Row(
            "swaps",
            f"changes of the model, server / first come, first served; {rate}",
            f"{', '.join(map(str, swaps))} / {fifo}, {share:.0%}; {fewest / fifo:.0%} only when it must"
            f"{told(doubts)}",
            "<= 50 % (G20)",
        ),
        Row(
            "swaps",
            "p95, server / first come, first served",
            f"{tails[0]:.2f} / {tails[1]:.2f} s, ratio {tails[0] / tails[1]:.2f}",
            "<= 1",
        ),
        Row(
            "swaps",
            "longest time that a job spent in the phase of loading",
            f"{max(loads) * 1e3:.0f} ms",
        ),
    ]


def _changes(port: int, measured: Measured, shots: Sequence[Shot]) -> tuple[int, list[float]]:
    """Changes of the model in the order of work, and seconds of each job's loading phase."""
    began: list[tuple[float, str]] = []
    loads = []
    client = Client(port)
    for outcome, shot in zip(measured.outcomes, shots, strict=True):
        if outcome.status != 200:
            continue
        events = client.events("GET", f"/jobs/{outcome.job}/events")
        phases = {
            told["phase"]: told["timestamp"] for told in reversed(list(events)) if "phase" in told
        }
        began.append((phases["generating"], shot.kind))
        loads.append(phases["preparing"] - phases["loading_model"])
    client.hang_up()
    return changes([model for _, model in sorted(began)]), loads
