"""How things end: clients that hang up, workers that are killed, a server that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway

LONG = {"prompt": "long", "model": "lab/slow", "steps": 900}


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own, to be maltreated."""
    with running_gateway(tmp_path, fake_settings()) as started:
        yield started


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations", "/generate/stream"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_leaves_stops_its_job(fake_gateway: Gateway, path: str, reset: bool) -> None:
    prompt = f"leaves {path} {reset}"
    sock = post(fake_gateway, path, {**LONG, "prompt": prompt})
    job = until(fake_gateway, lambda job: job["prompt"] == prompt and job["step"])
    hang_up(sock, reset=reset)
    left = time.monotonic()
    until(fake_gateway, lambda now: now["id"] == job["id"] and now["status"] == "cancelled")
    assert time.monotonic() - left < 2
    assert_worker_is_free(fake_gateway)


def test_a_client_that_leaves_the_queue_leaves_it_at_once(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        running = client.post("/jobs", json=LONG).json()["id"]
        sock = post(fake_gateway, "/generate", {"prompt": "waits"})
        waiting = until(fake_gateway, lambda job: job["prompt"] == "waits" and not ended(job))
        assert waiting["status"] == "queued"
        hang_up(sock)
        gone = until(fake_gateway, lambda job: job["prompt"] == "waits" and ended(job))
        assert (gone["id"], gone["attempt"]) == (waiting["id"], 0)
        assert client.get(f"/jobs/{running}").json()["status"] == "running"
        client.delete(f"/jobs/{running}")


def test_watching_a_job_and_leaving_does_not_stop_it(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        job = client.post("/jobs", json={**LONG, "steps": 30}).json()["id"]
        with client.stream("GET", f"/jobs/{job}/events") as response:
            next(response.iter_lines())
        shown = until(fake_gateway, lambda now: now["id"] == job and ended(now))
    assert shown["status"] == "succeeded"


def test_a_cancelled_job_ends_the_answer_that_waits_for_it(fake_gateway: Gateway) -> None:
    sock = post(fake_gateway, "/generate", {**LONG, "prompt": "cancelled by another"})
    job = until(fake_gateway, lambda job: job["prompt"] == "cancelled by another" and job["step"])
    with fake_gateway.client() as client:
        assert client.delete(f"/jobs/{job['id']}").json()["status"] == "cancelled"
    answer = all_of(sock)
    assert answer.startswith("HTTP/1.1 422")
    assert '"code":"cancelled"' in answer


def test_a_worker_killed_in_mid_job_costs_the_client_nothing_but_time(
    own_gateway: Gateway,
) -> None:
    body = {"prompt": "x", "model": "lab/slow", "steps": 30, "seed": 4}
    with own_gateway.client() as client:
        undisturbed = client.post("/generate", json=body).json()
        killed = False
        steps = []
        with client.stream("POST", "/generate/stream", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                data = json.loads(line[6:])
                if "step" in data:
                    steps.append(data["step"])
                if data.get("step") == 10 and not killed:
                    killed = True
                    os.kill(worker(own_gateway).pid, signal.SIGKILL)
    assert steps[-30:] == list(range(1, 31))
    assert data["done"] is True
    assert data["images"][0]["b64_json"] == undisturbed["images"][0]["b64_json"]


def test_a_job_that_loses_two_workers_fails_clearly_and_the_server_goes_on(
    own_gateway: Gateway,
) -> None:
    sock = post(own_gateway, "/v1/images/generations", LONG)
    for attempt in (1, 2):
        until(own_gateway, lambda job, n=attempt: job["attempt"] == n and (job["step"] or 0) > 1)
        os.kill(worker(own_gateway).pid, signal.SIGKILL)
    answer = all_of(sock)
    assert answer.startswith("HTTP/1.1 500")
    assert "x-should-retry: false" in answer
    assert '"code":"worker_crashed"' in answer
    own_gateway.wait_until_ready()
    with own_gateway.client() as client:
        assert client.post("/generate", json={"prompt": "x"}).status_code == 200


def test_sigterm_ends_streams_with_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_DRAIN_SECONDS": "0.2"}
    with running_gateway(tmp_path, settings) as gateway:
        child = worker(gateway)
        with (
            gateway.client() as client,
            client.stream(
                "POST", "/v1/images/generations", json={**LONG, "stream": True}
            ) as answer,
        ):
            until(gateway, lambda job: job["status"] == "running")
            gateway.process.terminate()
            text = "".join(answer.iter_text())
        assert text.endswith("\n\n")
        assert '"code":"server_draining"' in text
        assert gateway.process.wait(10) is not None
        psutil.wait_procs([child], timeout=5)
        assert not child.is_running()


def test_a_gateway_killed_outright_takes_its_workers_along(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway:
        child = worker(gateway)
        gateway.process.kill()
        gateway.process.wait()
        gone, _ = psutil.wait_procs([child], timeout=3)
        assert gone


def test_measured_times_and_pictures_survive_a_restart(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        body = {"prompt": "x", "model": "lab/slow"}
        image = client.post("/generate", json=body).json()["images"][0]
        learnt = client.post("/estimate", json=body).json()["eta_seconds"]
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        again = client.post("/estimate", json=body).json()["eta_seconds"]
        assert again == pytest.approx(learnt, abs=0.2)
        assert 0.4 < again < 2
        assert client.get(image["url"]).status_code == 200


def ended(job: dict[str, Any]) -> bool:
    return job["status"] not in ("queued", "running")


def worker(gateway: Gateway) -> psutil.Process:
    return next(c for c in gateway.workers() if "app.workers.child" in c.cmdline())


def assert_worker_is_free(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.post("/generate", json={"prompt": "x"}, timeout=5).status_code == 200


def post(gateway: Gateway, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request and do not wait for its answer."""
    content = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return sock


def all_of(sock: socket.socket) -> str:
    with sock, sock.makefile("rb") as stream:
        return stream.read().decode()


def hang_up(sock: socket.socket, *, reset: bool = False) -> None:
    if reset:  # linger 0 sends RST instead of FIN
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def until(gateway: Gateway, wanted: Any, seconds: float = 20) -> dict[str, Any]:
    """The newest job that is as wanted, once there is one."""
    deadline = time.monotonic() + seconds
    with gateway.client() as client:
        while time.monotonic() < deadline:
            jobs: list[dict[str, Any]] = client.get("/jobs").json()["jobs"]
            for job in jobs:
                if wanted(job):
                    return job
            time.sleep(0.02)
    raise AssertionError(f"no job is as wanted: {httpx.get(f'{gateway.url}/jobs').text}")
