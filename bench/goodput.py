"""Mixed strangers (open loop): who is served in good time, here and by first come, first served.

Seven of ten requests are small and urgent, three are long and of the background class, at 0.8 of what
the reference server, a tutorial's with a lock, can draw (`mixed`); the same with a tenth of the clients
hanging up early (`impatient`); and urgent pictures into an unbroken row of long ones (`urgent among
long`). Both servers get the same requests at the same times, in turns (A, B, B, A), and have the same
deadlines: three times what the kind takes on the idle reference server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.domain.model_card import ModelCard
from bench.blocks import told
from bench.load import Plan, Shot, fire
from bench.reference.serving import reference
from bench.server import BUNDLED, serving
from bench.stats import Row, percentile
from bench.wishes import Wish, bundled
from bench.workloads import Kind, Unloaded, impatient, in_time, mixture, unloaded

_LOAD = 0.8
_LEAVING = 0.1


def run(*, quick: bool) -> tuple[list[Row], bool]:
    card = bundled()["sketch"]
    kinds = _kinds(card)
    seconds = 12.0 if quick else 20.0
    settings = {**BUNDLED, "EASEL_PRELOAD": '["sketch"]', "EASEL_MAX_QUEUE": "5000"}
    with serving(settings) as ours, reference("tutorial", [card]) as theirs:
        usual = unloaded(theirs, kinds, 1 if quick else 5)
        idle = unloaded(ours, kinds, 1 if quick else 5)
        loads: dict[str, Callable[[int], list[Shot]]] = {
            "mixed": lambda seed: mixture(kinds, _LOAD * usual.capacity, seconds, seed),
            "impatient": lambda seed: impatient(
                mixture(kinds, _LOAD * usual.capacity, seconds, seed), _LEAVING, usual.seconds, seed
            ),
            "urgent among long": lambda seed: _among_long(kinds, usual, seconds, seed),
        }
        rows = [_usual(kinds, idle, usual)]
        for name, shots in list(loads.items())[: 1 if quick else None]:
            rounds = [shots(seed) for seed in ((1,) if quick else (1, 2))]
            rows += _compared(name, rounds, ours, theirs, usual)
    return rows, True


def _kinds(card: ModelCard) -> list[Kind]:
    return [
        Kind("128x128, 4 steps", Wish(card, 0, 128, 4), 3),
        Kind("192x192, 6 steps", Wish(card, 0, 192, 6), 2),
        Kind("256x256, 8 steps", Wish(card, 0, 256, 8), 2),
        Kind("256x256, 50 steps", Wish(card, 0, 256, 50), 3, "background"),
    ]


def _among_long(kinds: Sequence[Kind], usual: Unloaded, seconds: float, seed: int) -> list[Shot]:
    """Long ones that come as fast as they can be drawn, and urgent ones for a tenth of the time."""
    *urgent, long = kinds
    each = usual.seconds[long.name]
    row = [long.shot(place, place * each) for place in range(round(seconds / each))]
    weights = sum(kind.weight for kind in urgent)
    mean = sum(usual.seconds[kind.name] * kind.weight for kind in urgent) / weights
    return [*row, *mixture(urgent, 0.1 / mean, seconds, seed)]


def _compared(
    name: str, rounds: Sequence[Sequence[Shot]], ours: int, theirs: int, usual: Unloaded
) -> list[Row]:
    good = {ours: 0, theirs: 0}
    urgent: dict[int, list[float]] = {ours: [], theirs: []}
    doubts: set[str] = set()
    stayed = 0
    for shots in rounds:
        stayed += 2 * sum(shot.leave_after is None for shot in shots)
        for port in (ours, theirs, theirs, ours):
            measured = fire(Plan(port, list(shots), limit=max(shot.due for shot in shots) + 120))
            good[port] += in_time(measured, shots, usual.seconds)
            urgent[port] += [
                one.latency
                for one, shot in zip(measured.outcomes, shots, strict=True)
                if shot.body["priority"] == "interactive" and shot.leave_after is None
            ]
            doubts |= {measured.doubts} - {""}
    ratio = f"{good[ours] / good[theirs]:.2f}" if good[theirs] else "without bound"
    waits = {port: f"{percentile(urgent[port], 0.95):.2f}" for port in good}
    return [
        Row(
            "goodput",
            f"{name}: in good time, server / first come, first served",
            f"{good[ours]} / {good[theirs]} of {stayed}, ratio {ratio}{told(doubts)}",
            ">= 1.5 (G11)",
        ),
        Row(
            "goodput",
            f"{name}: p95 of urgent ones, server / first come, first served",
            f"{waits[ours]} / {waits[theirs]} s",
        ),
    ]


def _usual(kinds: Sequence[Kind], idle: Unloaded, usual: Unloaded) -> Row:
    figures = "; ".join(
        f"{kind.name}: {idle.seconds[kind.name] * 1e3:.0f} / {usual.seconds[kind.name] * 1e3:.0f}"
        for kind in kinds
    )
    figure = f"{figures} ms; {usual.capacity:.2f} a second fill the latter"
    return Row("goodput", "idle, server / first come, first served", figure)
