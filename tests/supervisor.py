"""Stands in for systemd: holds the listening socket, and starts the gateway on it, again and again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.gateway import START_SECONDS

_BECOME = """
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "app", "serve"])
"""


class Supervisor:
    def __init__(self, data: Path, environment: dict[str, str], host: str = "127.0.0.1") -> None:
        self.listener = socket.create_server((host, 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data / "log.txt"
        self._environment = {**os.environ, "EASEL_DATA_DIR": str(data), **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """As sd_listen_fds(3) has it: the socket is handle 3, and LISTEN_PID says whose."""
        handle = str(self.listener.fileno())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BECOME, handle],
                env=self._environment,
                pass_fds=[int(handle)],
                stdout=log,
                stderr=log,
            )

    def end(self, signals: int = 1, patience: float = 30) -> float:
        """Send SIGTERM so many times, and wait; gives the seconds."""
        assert self.process is not None
        begun = time.monotonic()
        for number in range(signals):
            if number:
                time.sleep(0.3)
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(patience)
        return time.monotonic() - begun

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if httpx.get(f"{self.url}/ready", timeout=START_SECONDS).status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")


@contextmanager
def supervised(
    data: Path, environment: dict[str, str], host: str = "127.0.0.1"
) -> Iterator[Supervisor]:
    supervisor = Supervisor(data, environment, host)
    try:
        supervisor.start()
        yield supervisor
    finally:
        if supervisor.process is not None and supervisor.process.poll() is None:
            supervisor.process.kill()
            supervisor.process.wait()
        supervisor.listener.close()
