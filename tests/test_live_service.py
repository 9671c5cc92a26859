"""The server as a service: sockets that systemd holds, the way it stops, and what it rereads."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import CARDS, fake_settings
from tests.gateway import Gateway, running_gateway
from tests.supervisor import supervised

LONG = {"prompt": "long", "model": "lab/slow", "steps": 150}


def test_who_connects_before_the_server_runs_is_answered(tmp_path: Path) -> None:
    with supervised(tmp_path, fake_settings()) as service:
        first = httpx.get(f"{service.url}/health", timeout=60)  # sent before anybody listens
        assert first.json() == {"status": "ok"}
        service.wait_until_ready()
        service.end()
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.get(f"{service.url}/health", timeout=60).status_code
            )
        )
        asking.start()
        time.sleep(0.3)
        assert not answers
        service.start()
        asking.join(60)
        assert answers == [200]


def test_what_systemd_listens_on_counts_for_keys(tmp_path: Path) -> None:
    """The settings say loopback, and the socket is open to all: that wants a key."""
    with supervised(tmp_path, fake_settings(), host="0.0.0.0") as service:
        assert service.process is not None
        assert service.process.wait(60) == 2
        assert "there is no key" in " ".join(service.log.read_text().split())


def test_workers_do_not_hold_the_socket(tmp_path: Path) -> None:
    with supervised(tmp_path, fake_settings()) as service:
        service.wait_until_ready()
        assert service.process is not None
        [worker] = psutil.Process(service.process.pid).children(recursive=True)
        assert not [one for one in worker.net_connections() if one.status == psutil.CONN_LISTEN]


def test_while_running_jobs_finish_new_ones_are_sent_away(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_DRAIN_SECONDS": "20"}
    with running_gateway(tmp_path, settings) as gateway:
        running: list[httpx.Response] = []
        drawing = threading.Thread(
            target=lambda: running.append(
                httpx.post(
                    f"{gateway.url}/generate", json={**LONG, "steps": 60, "n": 1}, timeout=60
                )
            )
        )
        drawing.start()
        until_running(gateway)
        gateway.process.terminate()
        refused = until_refused(gateway)
        assert refused.json()["error"]["code"] == "server_draining"
        assert 1 <= int(refused.headers["retry-after"]) <= 59
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{gateway.url}/ready").status_code == 503
        assert httpx.get(f"{gateway.url}/health").status_code == 200
        drawing.join(60)
        assert running[0].status_code == 200
        gateway.process.wait(20)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_DRAIN_SECONDS": "60"}
    with running_gateway(tmp_path, settings) as gateway:
        answers: list[httpx.Response] = []
        body = {**LONG, "steps": 900}
        drawing = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{gateway.url}/generate", json=body, timeout=60)
            )
        )
        drawing.start()
        until_running(gateway)
        gateway.process.terminate()
        time.sleep(1)
        assert gateway.process.poll() is None
        again = time.monotonic()
        gateway.process.terminate()
        gateway.process.wait(10)
        assert time.monotonic() - again < 5
        drawing.join(5)
        assert answers[0].status_code == 503  # it was still told
        assert answers[0].json()["error"]["code"] == "server_draining"
        assert int(answers[0].headers["retry-after"]) > 0


def test_systemd_is_told_when_it_serves_rereads_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(60)
        settings = {**fake_settings(), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running_gateway(tmp_path, settings) as gateway:
            assert heard.recv(100) == b"READY=1"
            gateway.process.send_signal(signal.SIGHUP)
            assert heard.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert heard.recv(100) == b"READY=1"
        assert heard.recv(100) == b"STOPPING=1"


def test_a_folder_serves_one_server(tmp_path: Path) -> None:
    postgres_like = {**fake_settings(), "EASEL_DATABASE": f"sqlite:///{tmp_path}/one.db"}
    with running_gateway(tmp_path, postgres_like):
        other = {**postgres_like, "EASEL_DATABASE": f"sqlite:///{tmp_path}/two.db"}
        second = easel(tmp_path, other, "serve", "--port", "0")
        assert second.returncode == 2
        assert "in use by another server" in " ".join(second.stderr.split())


# -- cards that change -----------------------------------------------------------------------------


def test_cards_are_reread_without_a_restart(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    shutil.copytree(CARDS, cards)
    settings = {**fake_settings(), "EASEL_MODELS_DIR": str(cards)}
    with running_gateway(tmp_path, settings) as gateway, gateway.client() as client:
        slow = client.post("/jobs", json=LONG).json()["id"]
        card = (cards / "fake.toml").read_text()
        (cards / "new.toml").write_text(card.replace('id = "fake"', 'id = "lab/new"'))
        assert easel(tmp_path, settings, "reload").returncode == 0
        until(lambda: "lab/new" in models(client))
        drawn = client.post("/generate", json={"prompt": "x", "model": "lab/new"})
        assert drawn.status_code == 200

        (cards / "new.toml").unlink()
        (cards / "bad.toml").write_text("id = 3")
        assert easel(tmp_path, settings, "reload").returncode == 0
        until(lambda: "nothing was reloaded: bad.toml" in gateway.log.read_text())
        assert "lab/new" in models(client)  # as it was

        (cards / "bad.toml").unlink()
        assert easel(tmp_path, settings, "reload").returncode == 0
        until(lambda: "lab/new" not in models(client))
        gone = client.post("/generate", json={"prompt": "x", "model": "lab/new"})
        assert gone.status_code == 404
        until(lambda: client.get(f"/jobs/{slow}").json()["status"] == "succeeded")


def test_a_model_whose_card_changed_is_loaded_anew(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    shutil.copytree(CARDS, cards)
    settings = {**fake_settings(), "EASEL_MODELS_DIR": str(cards)}
    with running_gateway(tmp_path, settings) as gateway, gateway.client() as client:
        assert loads(client) == {"fake": 1}
        body = {"prompt": "x", "steps": 3}
        assert client.post("/generate", json=body).status_code == 200
        assert easel(tmp_path, settings, "reload").returncode == 0
        time.sleep(0.5)
        assert client.post("/generate", json=body).status_code == 200
        assert loads(client) == {"fake": 1}  # nothing has changed
        text = (cards / "fake.toml").read_text()
        (cards / "fake.toml").write_text(text.replace("[defaults]", 'title = "Anew"\n[defaults]'))
        assert easel(tmp_path, settings, "reload").returncode == 0
        until(lambda: "were read anew" in gateway.log.read_text().rpartition("read anew")[0])
        assert client.post("/generate", json=body).status_code == 200
        until(lambda: loads(client) == {"fake": 2})


def test_reload_without_a_server_says_so(tmp_path: Path) -> None:
    told = easel(tmp_path, {}, "reload")
    assert (told.returncode, "no server runs" in told.stderr) == (1, True)


# -- help ------------------------------------------------------------------------------------------


def easel(data: Path, settings: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EASEL_DATA_DIR": str(data), **settings}
    return subprocess.run(
        [sys.executable, "-m", "app", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def models(client: httpx.Client) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def loads(client: httpx.Client) -> dict[str, int]:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("easel_model_loads_total{")]
    return {line.split('model="')[1].split('"')[0]: int(float(line.split()[-1])) for line in found}


def until(true: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def until_running(gateway: Gateway) -> None:
    def runs() -> bool:
        jobs = httpx.get(f"{gateway.url}/jobs").json()["jobs"]
        return bool(jobs) and jobs[0]["status"] == "running"

    until(runs)


def until_refused(gateway: Gateway) -> httpx.Response:
    """The answer to a new job, once the signal has arrived."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        answer = httpx.post(f"{gateway.url}/jobs", json={"prompt": "late"})
        if answer.status_code == 503:
            return answer
        httpx.delete(f"{gateway.url}/jobs/{answer.json()['id']}")
    raise AssertionError("it went on to take jobs")
