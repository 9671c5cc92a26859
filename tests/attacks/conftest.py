"""A server with keys for the attacks, and what no answer of it may ever hold."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.access import Allowance, Scope
from app.store.database import Database
from app.store.keys import KeyRing
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway

CANARY = "kanarienvogel"
"""A word that stands in prompts only."""

LEAKS = re.compile(r'0x[0-9a-f]{6,}|/(?:home|tmp|root|usr)/|Traceback|File "')


@dataclass
class House:
    """`keys` by the names of their owners; `secrets` are what no log and no error may hold."""

    gateway: Gateway
    keys: dict[str, str]

    def client(self, who: str | None = None, **headers: str) -> httpx.Client:
        """A client whose every error is looked through."""
        if who is not None:
            headers["authorization"] = f"Bearer {self.keys[who]}"
        client = self.gateway.client()
        client.headers.update(headers)
        client.event_hooks["response"].append(self.looked_through)
        return client

    @property
    def secrets(self) -> list[str]:
        return [key.rpartition("-")[2] for key in self.keys.values()]

    def looked_through(self, answer: httpx.Response) -> None:
        if answer.status_code >= 400:
            assert_clean(answer.read().decode("utf-8", "replace"), self.secrets)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
        told = str(answer.headers)
        assert not any(secret in told for secret in self.secrets)


def assert_clean(text: str, secrets: list[str]) -> None:
    assert not LEAKS.search(text), text
    assert CANARY not in text
    assert not any(secret in text for secret in secrets)


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("keyed")
    keys = asyncio.run(make_keys(folder))
    environment = {
        **fake_settings(),
        "EASEL_MODELS_DIR": str(drawing_cards(folder)),
        "EASEL_TRUST_USER_HEADER": "true",
        "EASEL_MAX_QUEUE": "20",
        "EASEL_MAX_RUNNING": "2",
        "EASEL_LINK_SECONDS": "60",
    }
    with running_gateway(folder, environment) as started:
        yield House(started, keys)


CARD = """
id = "{id}"
family = "fake"
source = "."
tasks = ["text2image", "image2image", "inpaint"]
defaults = {{ width = 64, height = 64, num_inference_steps = 4, sampler = "euler" }}
limits = {{ max_steps = 1000 }}
fake = {{ step_seconds = {seconds} }}
"""


def drawing_cards(folder: Path) -> Path:
    """Cards of models that draw all kinds of things, a quick and a slow one."""
    cards = folder / "cards"
    cards.mkdir()
    for name, seconds in (("fake", 0.005), ("lab/slow", 0.05)):
        text = CARD.format(id=name, seconds=seconds)
        (cards / f"{name.replace('/', '-')}.toml").write_text(text)
    return cards


async def make_keys(folder: Path) -> dict[str, str]:
    made: dict[str, str] = {}
    kinds: dict[str, tuple[Scope, ...]] = {
        "ann": ("generate",),
        "bob": ("generate",),
        "fetcher": ("models",),
        "chief": ("admin",),
        "gone": ("generate", "admin"),
    }
    limited = {
        "hasty": Allowance(requests_per_minute=3),
        "single": Allowance(running_jobs=1),
        "greedy": Allowance(queue_share=0.1),
        "poor": Allowance(gpu_seconds_per_day=0.001),
    }
    async with await Database.open(f"sqlite:///{folder / 'easel.db'}") as database:
        ring = KeyRing(database)
        for name, scopes in kinds.items():
            key, made[name] = await ring.create(
                name, owner=name, scopes=scopes, allowance=Allowance()
            )
        await ring.revoke(key.id)
        for name, allowance in limited.items():
            _, made[name] = await ring.create(
                name, owner=name, scopes=("generate",), allowance=allowance
            )
    return made


def raw(gateway: Gateway, request: bytes, timeout: float = 10) -> tuple[int, str]:
    """Status and whole answer to bytes that no well-behaved client would send; 0 where none came."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout) as sock:
        sock.sendall(request)
        answer = b""
        try:
            while not _whole(answer) and (piece := sock.recv(65_536)):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
    text = answer.decode("latin-1")
    found = re.match(r"HTTP/1\.[01] (\d{3})", text)
    return int(found[1]) if found else 0, text


def _whole(answer: bytes) -> bool:
    head, mark, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head.lower())
    return bool(mark) and length is not None and len(body) >= int(length[1])


def named(cases: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `parametrize` that give each case its name."""
    return {"argvalues": list(cases.values()), "ids": list(cases)}
