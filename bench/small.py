"""Small requests beside a picture: GET /health while the worker denoises, and while it is idle.

Requests are sent at fixed times. One that could not be sent in time, because the one before was not
answered yet, counts from when it was due. Idle and busy take turns.
"""

from __future__ import annotations

import time

from bench.server import BUNDLED, Client, serving
from bench.stats import Row, percentile, tail

_INTERVAL = 0.01
_LONG = {"prompt": "a red circle", "model": "sketch", "size": "512x512", "steps": 100, "seed": 1}


def run(*, quick: bool) -> tuple[list[Row], bool]:
    rounds, requests = (2, 100) if quick else (5, 300)
    idle: list[float] = []
    busy: list[float] = []
    with serving({**BUNDLED, "EASEL_PRELOAD": '["sketch"]'}) as port:
        for _ in range(rounds):
            idle += _health(port, requests)
            drawing = Client(port)
            events = drawing.events("POST", "/v1/images/generations/stream", _LONG)
            next(told for told in events if (told.get("step") or 0) >= 1)
            busy += _health(port, requests)
            drawing.hang_up()
            time.sleep(1.0)  # the worker lets go of the picture after its step
    ratio = percentile(busy, 0.99) / percentile(idle, 0.99)
    middle = percentile(busy, 0.5) / percentile(idle, 0.5)
    return [
        Row("small", "GET /health, idle", tail(idle)),
        Row("small", "GET /health, denoising", tail(busy)),
        Row("small", "denoising / idle, p50", f"ratio {middle:.2f}"),
        Row("small", "denoising / idle, p99", f"ratio {ratio:.2f}", "<= 2 (G6)"),
    ], True


def _health(port: int, requests: int) -> list[float]:
    client = Client(port)
    client.ask("GET", "/health")
    start = time.perf_counter() + _INTERVAL
    seconds = []
    for number in range(requests):
        due = start + number * _INTERVAL
        sent = due
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
            sent = time.perf_counter()  # a late awakening of this process is not the server's
        client.ask("GET", "/health")
        seconds.append(time.perf_counter() - sent)
    client.hang_up()
    return seconds
