"""A real server in its own process, and a client that costs little."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
FAKE = {
    "EASEL_MODELS_DIR": str(Path(__file__).parent / "cards"),
    "EASEL_DEFAULT_MODEL": "fake",
    "EASEL_PRELOAD": "[]",
    "EASEL_DEVICES": '["fake"]',
}
"""Settings under which nothing is drawn by a model: no torch anywhere."""

BUNDLED = {"EASEL_PRELOAD": '["sketch", "sketch-flux"]', "EASEL_DEVICES": '["cpu"]'}
"""Settings under which the bundled models draw on the CPU."""

_START_SECONDS = 60.0


class Client:
    """One kept-alive connection. Answers other than 2xx raise RuntimeError."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=300)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """Send and read the whole answer; nothing is decoded."""
        return self._send(method, path, body).read()

    def timed(self, method: str, path: str, body: object = None) -> float:
        """Seconds from sending to the last byte of the answer."""
        start = time.perf_counter()
        self.ask(method, path, body)
        return time.perf_counter() - start

    def events(self, method: str, path: str, body: object = None) -> Iterator[dict[str, Any]]:
        """The `data` of each server-sent event as it arrives."""
        answer = self._send(method, path, body)
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def hang_up(self) -> None:
        """End the connection, whatever is under way on it."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _send(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.read()[:300]!r}")
        return answer


@contextmanager
def serving(settings: dict[str, str]) -> Iterator[int]:
    """A server with these settings and an empty data folder, ready to draw; yields its port."""
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("EASEL_")},
            **settings,
            "EASEL_DATA_DIR": folder,
        }
        command = [sys.executable, "-m", "app", "serve", "--host", HOST, "--port"]
        with started(command, environment, Path(folder) / "server.log") as (port, _):
            yield port


@contextmanager
def started(
    command: list[str], environment: dict[str, str], log: Path, ready: str = "/ready"
) -> Iterator[tuple[int, int]]:
    """Run `command` with a free port as its last argument until it answers GET `ready`.

    Yields the port and the process's id.
    """
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, str(port)],
            env=environment,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            process_group=0,
        )
    try:
        _wait_until_ready(process, port, log, ready)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # what it started and did not end
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path, ready: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        client = Client(port)
        try:
            client.ask("GET", ready)
            return
        except (OSError, RuntimeError, http.client.HTTPException):
            time.sleep(0.1)
        finally:
            client.hang_up()
    raise RuntimeError(f"The server did not become ready:\n{log.read_text()[-2000:]}")
