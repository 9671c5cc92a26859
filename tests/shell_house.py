"""A server, and the shell that speaks to it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from tests.conftest import CARDS, fake_settings
from tests.gateway import Gateway, running_gateway

PAINTER = """
id = "painter"
family = "fake"
source = "."
tasks = ["text2image", "image2image", "inpaint"]
[defaults]
width = 64
height = 64
num_inference_steps = 4
sampler = "euler"
[limits]
max_steps = 1000
[fake]
step_seconds = 0.01
"""
BROKEN = PAINTER.replace('"fake"', '"stable_diffusion"').partition("[fake]")[0]
BROKEN = BROKEN.replace("painter", "broken").replace('"."', '"./nothing"')


@dataclass
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Easel = Callable[..., Told]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with the models of all tests, one that begins with pictures, and one that cannot."""
    cards = tmp_path_factory.mktemp("cards")
    for card in CARDS.glob("*.toml"):
        (cards / card.name).write_text(card.read_text())
    (cards / "painter.toml").write_text(PAINTER)
    (cards / "broken.toml").write_text(BROKEN)
    settings = {"EASEL_MODELS_DIR": str(cards), "EASEL_MAX_QUEUE": "20"}
    with running_gateway(
        tmp_path_factory.mktemp("data"), {**fake_settings(), **settings}
    ) as started:
        yield started


@pytest.fixture
def at_home(house: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The server of these settings; where the shell is, files can be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EASEL_DATA_DIR", str(house.log.parent))
    monkeypatch.setenv("EASEL_PORT", str(house.port))
    for name in ("EASEL_SERVER", "EASEL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return house


@pytest.fixture
def easel(
    at_home: Gateway, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Easel:
    """A command in this process, which is begun anew for each."""

    def run(*words: str, **environment: str) -> Told:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["easel", *words])
            for name, value in environment.items():
                patch.setenv(name, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
            out, err = capfd.readouterr()
            return Told(int(ended.value.code or 0), out, " ".join(err.split()))

    return run


def ended(house: Gateway, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    with house.client() as client:
        while True:
            job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
            if job["status"] not in ("queued", "running"):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.05)


def submitted(house: Gateway, **body: Any) -> str:
    with house.client() as client:
        job_id: str = client.post("/jobs", json={"prompt": "x", **body}).json()["id"]
        return job_id
