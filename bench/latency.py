"""One client, one picture at a time: the server against the raw pipeline.

Both arms draw the same prompts and seeds with the model's own defaults and end with a PNG as base64 in
JSON. The raw arm is timed inside its process, without any transport; the server's from sending the
request to the last byte of the answer. The arms take turns (A, B, B, A); the raw arm compared with
itself gives the noise band. The pixels of the two are compared for every picture.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from itertools import count

from app.domain.model_card import ModelCard
from bench.raw import RawPipeline
from bench.server import BUNDLED, Client, serving
from bench.stats import Row, in_turns, ms, verdict
from bench.wishes import Wish, bundled, farthest, pixels_of, pixels_of_answer, raw_pipeline

_SETTLE = 0.05
"""Seconds before each timed picture in which threads of the other arm fall asleep."""


def run(*, quick: bool) -> tuple[list[Row], bool]:
    """The rows, and whether all pixels were equal."""
    rows: list[Row] = []
    equal = True
    cards = bundled()
    with serving(BUNDLED) as port:
        for name in ("sketch", "sketch-flux"):
            found, same = _model(cards[name], port, quick=quick)
            rows += found
            equal = equal and same
    return rows, equal


def _model(card: ModelCard, port: int, *, quick: bool) -> tuple[list[Row], bool]:
    rounds = 2 if quick else 6
    with ExitStack() as stack:
        raw = stack.enter_context(raw_pipeline(card))
        seeds = count(1)
        differing = 0

        def gateway() -> float:
            nonlocal differing
            wish = Wish(card, next(seeds))
            client = Client(port)  # a new one: idle connections are closed by the server
            client.ask("GET", "/health")
            time.sleep(_SETTLE)
            start = time.perf_counter()
            answer = client.ask("POST", "/v1/images/generations", wish.body())
            seconds = time.perf_counter() - start
            client.hang_up()
            stocks = pixels_of(raw.draw(wish.arguments())[1])
            differing += farthest(pixels_of_answer(answer), stocks) > 0
            return seconds

        def stock(pipeline: RawPipeline) -> float:
            wish = Wish(card, next(seeds))
            time.sleep(_SETTLE)
            return pipeline.draw(wish.arguments())[0]

        for _ in range(2):  # the first picture of each process pays for lazy set-up
            gateway()
        compared = in_turns(gateway, lambda: stock(raw), rounds)
        noise = in_turns(lambda: stock(raw), lambda: stock(raw), rounds)
        what = f"{card.id} {card.defaults.width}x{card.defaults.height}"
        steps = card.defaults.num_inference_steps
        rows = [
            Row("latency", f"{what}, {steps} steps: server", ms(compared.first)),
            Row("latency", f"{what}: raw pipeline, Pillow, json", ms(compared.second)),
            Row("latency", f"{what}: server / raw", verdict(compared, noise), "<= 1.00 (G4)"),
            Row("latency", f"{what}: pictures that differ", str(differing), "0 (G7)"),
        ]
        if not quick:
            busy = stack.enter_context(raw_pipeline(card, spin_count=None))
            for _ in range(2):
                stock(busy)
            waits = in_turns(lambda: stock(busy), lambda: stock(raw), rounds // 2)
            figure = f"{statistics.median(waits.first) * 1e3:.2f} ms, ratio {waits.ratio:.3f}"
            rows.append(
                Row("latency", f"{what}: raw, default / the worker's OMP spin count", figure)
            )
        return rows, differing == 0
