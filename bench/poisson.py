"""One shape, strangers at 0.3 to 1.1 of what a loop can draw: latencies from when each was due.

The capacity is that of one client in a closed loop at the reference server, a tutorial's with a lock.
"""

from __future__ import annotations

from bench.blocks import told
from bench.load import Plan, fire
from bench.reference.serving import reference
from bench.server import BUNDLED, serving
from bench.stats import Row, percentile
from bench.wishes import Wish, bundled
from bench.workloads import PATIENCE, Kind, in_time, mixture, unloaded

_LOADS = (0.3, 0.6, 0.8, 0.9, 1.1)
_WATCHED = 0.8


def run(*, quick: bool) -> tuple[list[Row], bool]:
    card = bundled()["sketch"]
    kinds = [Kind("256x256, 8 steps", Wish(card, 0, 256, 8), 1)]
    seconds = 8.0 if quick else 60.0
    rows = []
    settings = {**BUNDLED, "EASEL_PRELOAD": '["sketch"]', "EASEL_MAX_QUEUE": "5000"}
    with serving(settings) as ours, reference("tutorial", [card]) as theirs:
        usual = unloaded(theirs, kinds, 2 if quick else 10)
        idle = unloaded(ours, kinds, 2 if quick else 10)
        middle = idle.seconds[kinds[0].name]
        rows.append(
            Row(
                "poisson",
                "idle, server / reference",
                f"{middle * 1e3:.0f} / {usual.seconds[kinds[0].name] * 1e3:.0f} ms",
            )
        )
        for load in (_WATCHED,) if quick else _LOADS:
            shots = mixture(kinds, load * usual.capacity, seconds, seed=7)
            for name, port in (("server", ours), ("reference", theirs)):
                measured = fire(Plan(port, shots, limit=seconds + 120))
                waits = measured.latencies()
                tails = " / ".join(f"{percentile(waits, share):.2f}" for share in (0.5, 0.95, 0.99))
                good = in_time(measured, shots, usual.seconds) / len(shots)
                figure = f"p50 / p95 / p99 = {tails} s; {good:.0%} within {PATIENCE:.0f}x"
                doubts = told({measured.doubts} - {""})
                watched = load == _WATCHED and name == "server"
                goal = f"p95 <= {PATIENCE * middle:.2f} s (G24)" if watched else ""
                what = f"{load:.1f} of the capacity, {name} (n = {len(shots)})"
                rows.append(Row("poisson", what, figure + doubts, goal))
    return rows, True
