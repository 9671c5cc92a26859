"""The server alone, with an engine that draws a flat colour at once: what web, queue and worker cost.

One client in a closed loop, then eight; then one stream of 1000 steps. A flat colour makes a small
file: the figures leave out most of what a megabyte costs on its way, so its size is told with them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bench.server import FAKE, Client, serving
from bench.stats import Row, ms, tail

_ROUTE = "/v1/images/generations"
_CLIENTS = 8
_STEPS = 1000


def run(*, quick: bool) -> tuple[list[Row], bool]:
    pictures = 60 if quick else 300
    rows: list[Row] = []
    with serving(FAKE) as port:
        for side, goal in ((1024, "p50 <= 20 ms (G1)"), (64, "")):
            body = {"prompt": "a flat colour", "size": f"{side}x{side}", "seed": 1}
            client = Client(port)
            answer = 0
            for _ in range(10):
                answer = len(client.ask("POST", _ROUTE, body))
            seconds = [client.timed("POST", _ROUTE, body) for _ in range(pictures)]
            client.hang_up()
            what = f"1 client, {side}x{side}, answers of {answer / 1e3:.1f} kB"
            rows.append(Row("gateway", what, tail(seconds), goal))
        body = {"prompt": "a flat colour", "size": "1024x1024", "seed": 1}
        rate = _throughput(port, body, pictures)
        goal = ">= 40 img/s (G3)"
        rows.append(Row("gateway", f"{_CLIENTS} clients, 1024x1024", f"{rate:.1f} img/s", goal))
        rows += _stream(port, 3 if quick else 10)
    return rows, True


def _throughput(port: int, body: dict[str, object], pictures: int) -> float:
    def draw(share: int) -> None:
        client = Client(port)
        for _ in range(share):
            client.ask("POST", _ROUTE, body)
        client.hang_up()

    each = pictures // _CLIENTS
    with ThreadPoolExecutor(_CLIENTS) as clients:
        start = time.perf_counter()
        list(clients.map(draw, [each] * _CLIENTS))
        return each * _CLIENTS / (time.perf_counter() - start)


def _stream(port: int, times: int) -> list[Row]:
    firsts, rates = [], []
    body = {"prompt": "a flat colour", "size": "64x64", "steps": _STEPS, "seed": 1}
    for _ in range(times):
        client = Client(port)
        start = time.perf_counter()
        arrivals = [time.perf_counter() for _ in client.events("POST", f"{_ROUTE}/stream", body)]
        client.hang_up()
        firsts.append(arrivals[0] - start)
        rates.append((len(arrivals) - 1) / (arrivals[-1] - arrivals[0]))
    return [
        Row("gateway", "progress stream: first event", ms(firsts), "<= 1 step + 20 ms (G17)"),
        Row("gateway", "progress stream: events per second", f"{sorted(rates)[times // 2]:.0f}"),
    ]
