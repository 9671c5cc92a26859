"""Two models and room for one: how often they change places, against first come, first served.

Strangers ask for the models by Zipf's law. First come, first served changes models as often as
neighbours in the trace differ, which is counted there; its latencies are the reference server's, which
holds one stock pipeline. The server's changes are counted from its jobs' events: in the order in which
their work began, wherever the model is another than before. Both serve the same trace, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.blocks import told
from bench.load import Measured, Plan, Shot, fire
from bench.reference.serving import reference
from bench.server import BUNDLED, Client, serving
from bench.stats import Row, percentile
from bench.traces import changes, zipf
from bench.wishes import Wish, bundled
from bench.workloads import Kind, mixture

_LOAD = 0.8


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
    waits: dict[int, list[float]] = {}
    swaps: list[int] = []
    loads: list[float] = []
    doubts: set[str] = set()
    with serving(settings) as ours, reference("tutorial", models, 1) as theirs:
        trial = mixture(kinds, 1.0, 10.0 if quick else 30.0, seed=11)
        for port in (ours, theirs):
            fire(Plan(port, trial[:4], 1))
        capacity = len(trial) / fire(Plan(theirs, trial, 1)).wall
        shots = mixture(kinds, _LOAD * capacity, (15 if quick else 80) / capacity, seed=12)
        for port in (ours, theirs) if quick else (ours, theirs, theirs, ours):
            measured = fire(Plan(port, shots, limit=shots[-1].due + 120))
            waits.setdefault(port, []).extend(measured.latencies())
            doubts |= {measured.doubts} - {""}
            if port == ours:
                count, seconds = _changes(port, measured, shots)
                swaps.append(count)
                loads += seconds
    fifo = changes([shot.kind for shot in shots])
    share = sum(swaps) / len(swaps) / fifo
    tails = [percentile(waits[port], 0.95) for port in (ours, theirs)]
    rate = f"{len(shots)} requests, {_LOAD * capacity:.2f} a second"
    return [
        Row(
            "swaps",
            f"changes of the model, server / first come, first served; {rate}",
            f"{', '.join(map(str, swaps))} / {fifo}, {share:.0%}{told(doubts)}",
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
    ], True


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
