"""Pictures a second for 1, 2, 4 and 8 clients, over a plain loop around the stock pipeline.

A closed loop from a process of its own, one kept-alive connection for each client; no prompt comes
twice. The loop is timed inside its process and ends, as the server does, with a PNG as base64 in JSON.
Blocks of pictures take turns (A, B, B, A) and hold the same pictures in both arms. A picture that was
drawn alone must be the stock pipeline's bit for bit; those that shared forwards may be off by rounding.
"""

from __future__ import annotations

from functools import partial

from app.domain.model_card import ModelCard
from bench.blocks import Blocks, told
from bench.server import BUNDLED, serving
from bench.stats import Row, in_turns, rates
from bench.wishes import bundled, raw_pipeline

GREY_LEVELS = 1
"""By how much rounding may move a value of a picture that shared its forwards."""

_GOALS = {"sketch": ">= 2.0", "sketch-flux": ">= 1.3"}


def run(*, quick: bool) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    equal = True
    cards = bundled()
    for name in _GOALS:
        with serving({**BUNDLED, "EASEL_PRELOAD": f'["{name}"]'}) as port:
            found, same = _model(cards[name], port, quick=quick)
        rows += found
        equal = equal and same
    return rows, equal


def _model(card: ModelCard, port: int, *, quick: bool) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    rounds = 1 if quick else 3
    with raw_pipeline(card) as raw:
        blocks = Blocks(card, raw, 8 if quick else 24)
        blocks.raw()
        blocks.level()
        noise = in_turns(blocks.raw, blocks.raw, rounds)
        for clients in (1, 8) if quick else (1, 2, 4, 8):
            blocks.warm_up(port, clients)
            blocks.level()
            compared = in_turns(partial(blocks.server, port, clients), blocks.raw, rounds)
            goal = _GOALS[card.id] if clients == 8 else ""
            what = f"{card.id}, clients: {clients}; server / raw loop"
            rows.append(Row("throughput", what, rates(compared) + told(blocks.doubts), goal))
            blocks.doubts.clear()
        rows += _pixels(card.id, blocks)
        rows.append(Row("throughput", f"{card.id}, raw loop / itself", rates(noise)))
    off = max(blocks.shared, default=0)
    return rows, not any(blocks.alone) and off <= GREY_LEVELS


def _pixels(name: str, blocks: Blocks) -> list[Row]:
    same = sum(off == 0 for off in blocks.shared)
    return [
        Row(
            "throughput",
            f"{name}, drawn alone: pictures that differ from the stock pipeline's",
            f"{sum(off > 0 for off in blocks.alone)} of {len(blocks.alone)}",
            "0",
        ),
        Row(
            "throughput",
            f"{name}, drawn beside others: farthest value; equal pictures",
            f"{max(blocks.shared, default=0)} of 255; {same} of {len(blocks.shared)}",
            f"<= {GREY_LEVELS}",
        ),
    ]
