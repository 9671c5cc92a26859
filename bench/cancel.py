"""A client hangs up in the middle of a picture: how long until the worker takes the next job.

A small job waits in the queue while a long one is streamed; the stream is cut after a few steps. The
worker takes one job at a time here, so it is free when the waiting job's `started` event is told, and a
decoded picture would show in the time. Compared with the time of one step. The waiting job's picture
must be the same as without all that.
"""

from __future__ import annotations

import json
import statistics
import time
from itertools import pairwise

from bench.server import BUNDLED, Client, serving
from bench.stats import Row, ms
from bench.wishes import farthest, pixels_of, pixels_of_answer

_LONG = {"prompt": "a red circle", "model": "sketch", "size": "512x512", "steps": 100, "seed": 1}
_SHORT = {"prompt": "a red circle", "model": "sketch", "size": "128x128", "steps": 1, "seed": 1}
_WATCHED = 6
"""Steps of the long job before the client leaves."""


def run(*, quick: bool) -> tuple[list[Row], bool]:
    freed: list[float] = []
    steps: list[float] = []
    settings = {**BUNDLED, "EASEL_PRELOAD": '["sketch"]', "EASEL_MAX_RUNNING": "1"}
    with serving(settings) as port:
        usual = pixels_of_answer(Client(port).ask("POST", "/v1/images/generations", _SHORT))
        nexts = [_once(port, number, freed, steps) for number in range(3 if quick else 10)]
    differing = sum(farthest(pixels_of(png), usual) > 0 for png in nexts)
    step = statistics.median(steps)
    late = [seconds - step for seconds in freed]
    return [
        Row("cancel", "one step, sketch 512x512", ms(steps)),
        Row("cancel", "hang-up to free worker", ms(freed)),
        Row(
            "cancel",
            "longest, less one step",
            f"{max(late) * 1e3:.2f} ms ({max(freed) / step:.2f} steps in all)",
            "<= 50 ms (G9)",
        ),
        Row("cancel", "next pictures changed by it", str(differing), "0"),
    ], differing == 0


def _once(port: int, number: int, freed: list[float], steps: list[float]) -> bytes:
    """The waiting job's picture."""
    drawing, other = Client(port), Client(port)
    events = drawing.events("POST", "/v1/images/generations/stream", _LONG)
    arrivals: list[float] = []
    waiting = ""
    for told in events:
        if told.get("step"):
            arrivals.append(time.perf_counter())
        if arrivals and not waiting:
            waiting = json.loads(other.ask("POST", "/jobs", _SHORT))["id"]
        if len(arrivals) == _WATCHED:
            break
    steps += [after - before for before, after in pairwise(arrivals)]
    time.sleep(statistics.median(steps) * (number % 5) / 5)  # at any moment of a step
    left = time.time()
    drawing.hang_up()
    story = list(other.events("GET", f"/jobs/{waiting}/events"))
    started = next(event["timestamp"] for event in story if "worker" in event)
    freed.append(started - left)
    (image,) = json.loads(other.ask("GET", f"/jobs/{waiting}"))["images"]
    png = other.ask("GET", f"/images/{image}")
    other.hang_up()
    return png
