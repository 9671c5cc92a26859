"""A real NATS server of its own for the tests, and what clients of the door do with one."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from tests.gateway import free_port

PREFIX = "ai.vision.imagegen"


def _program() -> str:
    """Debian keeps the server out of the PATH of users."""
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if found is None:
        pytest.fail("nats-server is not installed (Debian: apt-get install nats-server)")
    return found


class Broker:
    """One NATS server on 127.0.0.1, with JetStream in a folder that outlives it. `settings` are lines
    of its configuration, which change with the next start."""

    def __init__(self, folder: Path, settings: str = "", *, scheme: str = "nats") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.settings = settings
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        listen, store = f'listen: "127.0.0.1:{self.port}"', f'store_dir: "{self._folder}/store"'
        file = self._folder / "nats.conf"
        file.write_text(f"{listen}\njetstream {{ {store} }}\n{self.settings}\n")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([_program(), "-c", str(file)], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError(self._log.read_text()) from None
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """At once: connections break, and what was in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def environment(self, **more: str) -> dict[str, str]:
        """What a gateway needs to know to come here."""
        return {"EASEL_NATS_URL": self.url, **more}


@contextmanager
def running_broker(folder: Path, settings: str = "", *, scheme: str = "nats") -> Iterator[Broker]:
    broker = Broker(folder, settings, scheme=scheme)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@asynccontextmanager
async def connected(broker: Broker, *, wait: float = 0.1) -> AsyncIterator[Client]:
    """A client that comes back for ever, `wait` seconds after it has tried last."""

    async def ignore(_: Exception) -> None:
        pass

    client = await nats.connect(
        broker.url,
        error_cb=ignore,
        reconnect_time_wait=wait,
        max_reconnect_attempts=-1,
    )
    try:
        yield client
    finally:
        await client.close()


def subject(*words: str) -> str:
    return ".".join((PREFIX, *words))


async def ask(
    client: Client,
    word: str,
    body: Any = None,
    *,
    within: float = 60,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The answer to a request; `body` is JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    answer = await client.request(subject(word), data, timeout=within, headers=headers)
    told: dict[str, Any] = json.loads(answer.data)
    return told


async def until_open(client: Client, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What the door says of its model, as soon as it says anything."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await ask(client, "model_info", within=2, headers=headers)
        except (NoRespondersError, TimeoutError):
            assert time.monotonic() < deadline, "the door did not open"
            await asyncio.sleep(0.05)


class Heard:
    """All messages of some subjects, in the order in which they came."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []

    async def hear(self, message: Msg) -> None:
        self.messages.append((message.subject, json.loads(message.data)))

    def of(self, word: str) -> list[dict[str, Any]]:
        return [told for name, told in self.messages if name.startswith(subject(word))]

    async def until(self, wanted: Any, seconds: float = 30) -> Any:
        """What `wanted` gives, as soon as it gives something."""
        deadline = time.monotonic() + seconds
        while not (found := wanted()):
            assert time.monotonic() < deadline, f"it did not come: {self.messages}"
            await asyncio.sleep(0.02)
        return found

    async def result(self, seconds: float = 30, **said: Any) -> dict[str, Any]:
        """The first result that says this."""

        def first() -> dict[str, Any] | None:
            wanted = said.items()
            return next((one for one in self.of("result") if wanted <= one.items()), None)

        found: dict[str, Any] = await self.until(first, seconds)
        return found


@asynccontextmanager
async def hearing(client: Client, *words: str) -> AsyncIterator[Heard]:
    """What is said from now on."""
    heard = Heard()
    subscriptions = [await client.subscribe(subject(word), cb=heard.hear) for word in words]
    await client.flush()
    yield heard
    for one in subscriptions:
        if not client.is_closed:
            await one.unsubscribe()
