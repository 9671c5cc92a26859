"""What a picture of 1024 x 1024 costs all of the server's processes, drawing left out.

The fake engine answers with noise as hard to compress as a photograph, 3 MB in base64. CPU time is that
of the web process and of the worker together, sockets, queue and events included, against what only
Pillow, base64 and json of the standard library take for the same pixels. The client is a process of its
own that throws bodies away.
"""

from __future__ import annotations

import statistics
import time

import psutil

from bench.blocks import told
from bench.codec import naive
from bench.load import Plan, Shot, fire
from bench.server import FAKE, Client, serving
from bench.stats import Row, ms, tail
from bench.wishes import pixels_of_answer

_BODY = {"prompt": "noise", "size": "1024x1024", "seed": 1}


def run(*, quick: bool) -> tuple[list[Row], bool]:
    count = 40 if quick else 300
    shots = [Shot(_BODY)] * count
    with serving(FAKE) as port:
        server = psutil.Process().children(recursive=True)
        pixels = pixels_of_answer(Client(port).ask("POST", "/v1/images/generations", _BODY))
        fire(Plan(port, shots[:20], 1))
        rows = []
        costs = []
        for clients in (1, 8):
            before = _cpu(server)
            measured = fire(Plan(port, shots, clients))
            costs.append((_cpu(server) - before) / count)
            goal = "p50 <= 20 ms (G1)" if clients == 1 else ""
            doubts = told({measured.doubts} - {""})
            what = f"1024x1024, clients: {clients}"
            rows += [
                Row("webcost", f"{what}: latency", tail(measured.latencies()) + doubts, goal),
                Row(
                    "webcost",
                    f"{what}: CPU of all processes",
                    f"{costs[-1] * 1e3:.2f} ms a picture",
                ),
            ]
            rate = f"{count / measured.wall:.1f} a second"
            rows.append(Row("webcost", f"{what}: pictures", rate))
    alone = []
    for _ in range(3 if quick else 10):
        start = time.thread_time()
        naive(pixels)
        alone.append(time.thread_time() - start)
    gain = statistics.median(alone) / costs[0]
    return [
        *rows,
        Row("webcost", "Pillow, base64 and json alone", f"{ms(alone)} CPU"),
        Row(
            "webcost",
            "that, over the whole server's CPU time for 1 client",
            f"{gain:.1f} times",
            ">= 15 (G2)",
        ),
    ], True


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
