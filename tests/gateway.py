"""Starts a real gateway for tests and ends it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

START_SECONDS = 150
"""A busy machine takes long to import torch."""


@dataclass
class Gateway:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")


@contextmanager
def running_gateway(
    data: Path, environment: dict[str, str], command: Sequence[str] = ("-m", "app", "serve")
) -> Iterator[Gateway]:
    """`command` is what Python is given to run."""
    port = int(environment.get("EASEL_PORT") or free_port())
    log = data / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={
                **os.environ,
                "EASEL_DATA_DIR": str(data),
                "EASEL_PORT": str(port),
                **environment,
            },
            stderr=file,
            stdout=file,
        )
    gateway = Gateway(f"http://127.0.0.1:{port}", process, log)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
