"""Clients that read or send slowly, through nginx: what they do to all others.

Half of the time normal clients are alone; the other half a hundred readers of a large picture stall
beside them, or slowhttptest holds five hundred connections with requests that never end.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.nginx import nginx_before
from bench.server import FAKE, HOST, Client, serving
from bench.stats import Row, percentile, tail

_READERS = 100
_CONNECTIONS = 500


def run(*, quick: bool) -> tuple[list[Row], bool]:
    rounds, requests = (1, 100) if quick else (3, 300)
    rows: list[Row] = []
    settings = {**FAKE, "EASEL_PRELOAD": '["fake"]'}
    # All come from one address here.
    room = {"limit_conn easel_clients 256": "limit_conn easel_clients 2000"}
    with (
        serving(settings) as port,
        tempfile.TemporaryDirectory(prefix="easel-nginx-") as folder,
        nginx_before(port, Path(folder), **room) as url,
    ):
        front = int(url.rpartition(":")[2])
        kinds: dict[str, Callable[[], AbstractContextManager[None]]] = {
            f"{_READERS} readers that stall": lambda: _stalled(front),
            f"{_CONNECTIONS} half-sent headers": lambda: _slow_http(url, "-H"),
            f"{_CONNECTIONS} half-sent bodies": lambda: _slow_http(url, "-B"),
            f"{_CONNECTIONS} slow readers": lambda: _slow_http(url, "-X"),
        }
        for name, crowd in kinds.items():
            alone: list[float] = []
            beside: list[float] = []
            for _ in range(rounds):
                alone += _normal(front, requests)
                with crowd():
                    beside += _normal(front, requests)
            ratio = percentile(beside, 0.99) / percentile(alone, 0.99)
            rows += [
                Row(
                    "slow_clients",
                    f"normal clients, alone / beside {name}: p99",
                    f"ratio {ratio:.2f}",
                    "< 2",
                ),
                Row("slow_clients", "alone", tail(alone)),
                Row("slow_clients", "beside them", tail(beside)),
            ]
    return rows, True


def _normal(port: int, requests: int) -> list[float]:
    client = Client(port)
    body = {"prompt": "x", "model": "fake", "size": "64x64"}
    seconds = []
    for number in range(requests):
        time.sleep(0.005)
        asks = ("POST", "/generate", body) if number % 3 == 0 else ("GET", "/jobs?limit=5", None)
        seconds.append(client.timed(*asks))
    client.hang_up()
    return seconds


@contextmanager
def _stalled(port: int) -> Iterator[None]:
    """Readers that ask for a picture of three megabytes and do not read it."""
    client = Client(port)
    answer = json.loads(client.ask("POST", "/jobs", {"prompt": "x", "model": "fake"}))
    path = f"/jobs/{answer['id']}"
    while not (images := json.loads(client.ask("GET", path))["images"]):
        time.sleep(0.05)
    client.hang_up()
    picture = images[0]["id"] if isinstance(images[0], dict) else images[0]
    request = f"GET /images/{picture} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode()
    readers = []
    for _ in range(_READERS):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((HOST, port))
        sock.sendall(request)
        readers.append(sock)
    try:
        yield
    finally:
        for sock in readers:
            sock.close()


@contextmanager
def _slow_http(url: str, how: str) -> Iterator[None]:
    program = shutil.which("slowhttptest")
    if program is None:
        raise RuntimeError("this needs slowhttptest: install your system's package")
    target = f"{url}/v1/models" if how == "-X" else f"{url}/v1/images/generations"
    command = [
        program,
        how,
        "-c",
        str(_CONNECTIONS),
        "-r",
        "500",
        "-l",
        "120",
        "-i",
        "5",
        "-u",
        target,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
