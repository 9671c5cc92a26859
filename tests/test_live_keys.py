"""Keys as those who run a server meet them: made and revoked in the shell, and what each may."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.attacks.conftest import House, drawing_cards, keyed
from tests.conftest import fake_settings
from tests.gateway import Gateway, free_port, running_gateway
from tests.stored import png

__all__ = ["keyed"]  # a fixture


def easel(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def own(gateway: Gateway) -> dict[str, str]:
    """What the shell needs to know to mean this server."""
    return {"EASEL_DATA_DIR": str(gateway.log.parent), "EASEL_PORT": str(gateway.port)}


# -- from no key to one, and back ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def fresh(
    request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[tuple[Gateway, dict[str, str]]]:
    """A server without keys, on each kind of database."""
    environment = fake_settings()
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        environment["EASEL_DATABASE"] = server.fresh()
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started, environment


def test_without_keys_any_dummy_is_good_and_one_key_ends_that_at_once(
    fresh: tuple[Gateway, dict[str, str]],
) -> None:
    gateway, environment = fresh
    environment = {**environment, **own(gateway)}
    dummy = {"authorization": "Bearer none"}
    models = f"{gateway.url}/v1/models"
    assert httpx.get(models).status_code == 200
    assert httpx.get(models, headers=dummy).status_code == 200
    assert httpx.get(f"{gateway.url}/keys", headers=dummy).status_code == 401

    made = easel(environment, "keys", "create", "team", "--scope", "generate", "--scope", "models")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("easel-")
    assert key not in made.stderr
    good = {"authorization": f"Bearer {key}"}
    assert httpx.get(models).status_code == 401
    assert httpx.get(models, headers=dummy).status_code == 401
    assert httpx.get(models, headers=good).status_code == 200
    assert httpx.get(f"{gateway.url}/health").status_code == 200

    (listed,) = json.loads(easel(environment, "keys", "list", "--json").stdout)
    assert (listed["name"], listed["owner"], listed["revoked"]) == ("team", "team", None)
    assert listed["scopes"] == ["generate", "models"]
    assert key.rpartition("-")[2] not in json.dumps(listed)

    assert easel(environment, "keys", "revoke", listed["id"]).returncode == 0
    assert httpx.get(models, headers=good).status_code == 401
    assert httpx.get(models).status_code == 401  # there was one: the door stays shut
    assert "revoked" in easel(environment, "keys", "list").stdout

    assert easel(environment, "keys", "revoke", listed["id"], "--forget").returncode == 0
    assert httpx.get(models, headers=dummy).status_code == 200
    missing = easel(environment, "keys", "revoke", "nobody")
    assert (missing.returncode, "no such key" in missing.stderr) == (2, True)


def test_the_shell_asks_its_own_server_with_keys_too(keyed: House) -> None:
    told = easel(own(keyed.gateway), "stats", "--json")
    assert told.returncode == 0, told.stderr
    assert "statuses" in json.loads(told.stdout)


# -- elsewhere than on loopback --------------------------------------------------------------------


def test_strangers_are_not_let_in_without_a_key(tmp_path: Path) -> None:
    environment = {**fake_settings(), "EASEL_DATA_DIR": str(tmp_path)}
    words = ("serve", "--host", "0.0.0.0", "--port", str(free_port()))
    refused = easel(environment, *words)
    assert refused.returncode == 2
    assert "easel keys create" in refused.stderr
    wide = easel(
        {**environment, "EASEL_CORS_ORIGINS": '["*"]'}, "serve", "--port", str(free_port())
    )
    assert wide.returncode == 2
    assert "cors_origins" in wide.stderr


@pytest.mark.parametrize("how", ["a key", "a proxy"])
def test_with_a_key_or_a_proxy_that_asks_it_serves_everybody(tmp_path: Path, how: str) -> None:
    environment = {**fake_settings(), "EASEL_DATA_DIR": str(tmp_path), "EASEL_HOST": "0.0.0.0"}
    if how == "a key":
        assert easel(environment, "keys", "create", "one").returncode == 0
    else:
        environment |= {
            "EASEL_PROXY_AUTHENTICATES": "true",
            "EASEL_ALLOWED_HOSTS": '["easel.example"]',
        }
    with running_gateway(tmp_path, environment) as gateway:
        models = f"{gateway.url}/v1/models"
        named = httpx.get(models, headers={"host": "easel.example"})
        foreign = httpx.get(models, headers={"host": "evil.example"})
    wanted = (401, 401) if how == "a key" else (200, 403)
    assert (named.status_code, foreign.status_code) == wanted


# -- limits ----------------------------------------------------------------------------------------


def test_a_key_may_ask_so_often_and_no_more(keyed: House) -> None:
    with keyed.client("hasty") as client:
        answers = [client.post("/v1/images/generations", json={"prompt": "x"}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [answers[n].headers["x-ratelimit-remaining-requests"] for n in (0, 2)] == ["2", "0"]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 59
        assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert answers[-1].json()["error"]["type"] == "rate_limit_error"
        assert client.get("/jobs").status_code == 200  # looking is not counted
    with keyed.client("ann") as client:
        free = client.post("/v1/images/generations", json={"prompt": "x"})
        assert free.status_code == 200
        assert "x-ratelimit-limit-requests" not in free.headers


def test_a_key_has_its_share_of_the_queue_however_it_asks(keyed: House) -> None:
    slow = {"prompt": "x", "model": "lab/slow", "steps": 900}
    with keyed.client("ann") as client:
        busy = [client.post("/jobs", json={**slow, "seed": n}).json()["id"] for n in range(2)]
    statuses: list[int] = []

    def ask() -> None:
        with keyed.client("greedy") as client:
            statuses.append(client.post("/jobs", json=slow).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with keyed.client("greedy") as client:
        waiting = [job for job in client.get("/jobs").json()["jobs"] if job["status"] == "queued"]
        for job in client.get("/jobs").json()["jobs"]:
            client.delete(f"/jobs/{job['id']}")
    with keyed.client("ann") as client:
        for job_id in busy:
            client.delete(f"/jobs/{job_id}")
    assert len(waiting) <= 2  # a tenth of twenty places
    assert set(statuses) == {202, 429}


def test_a_key_runs_so_many_at_once_and_the_rest_waits(keyed: House) -> None:
    """An interactive job starts beside a background one at once, where nothing forbids it."""
    slow = {"prompt": "x", "model": "lab/slow", "steps": 40}
    for who, allowed in (("ann", 2), ("single", 1)):
        with keyed.client(who) as client:
            jobs = [client.post("/jobs", json={**slow, "priority": "background"}).json()["id"]]
            while client.get(f"/jobs/{jobs[0]}").json()["status"] != "running":
                time.sleep(0.02)
            jobs.append(client.post("/jobs", json=slow).json()["id"])
            most, told = 0, [""]
            while told != ["succeeded"] * 2:
                told = [client.get(f"/jobs/{job}").json()["status"] for job in jobs]
                most = max(most, told.count("running"))
                time.sleep(0.02)
        assert most == allowed, who


def test_a_key_that_has_used_its_seconds_is_told_so(keyed: House) -> None:
    with keyed.client("poor") as client:
        first = client.post("/v1/images/generations", json={"prompt": "x", "steps": 30})
        assert first.status_code in (200, 429)
        second = client.post("/v1/images/generations", json={"prompt": "x"})
    assert (second.status_code, second.json()["error"]["code"]) == (429, "insufficient_quota")
    assert second.headers["x-should-retry"] == "false"


def test_what_a_picture_cost_is_told(keyed: House) -> None:
    with keyed.client("ann") as client:
        answer = client.post(
            "/v1/images/generations", json={"prompt": "x", "model": "lab/slow", "steps": 30}
        )
    seconds = float(answer.headers["x-easel-gpu-seconds"])
    assert answer.json()["usage"]["gpu_seconds"] == pytest.approx(seconds)
    assert seconds > 0
    with keyed.client("chief") as client:
        (ann,) = (key for key in client.get("/keys").json()["keys"] if key["owner"] == "ann")
        assert ann["gpu_seconds_today"] >= round(seconds, 3)


# -- pictures that wait ----------------------------------------------------------------------------


def test_pictures_that_wait_have_a_limit_together(tmp_path: Path) -> None:
    environment = {
        **fake_settings(),
        "EASEL_MODELS_DIR": str(drawing_cards(tmp_path)),
        "EASEL_MAX_WAITING_UPLOADS": "5MB",
        "EASEL_MAX_QUEUE": "50",
    }
    form = {"prompt": "x", "model": "lab/slow", "steps": "900", "on_hang_up": "finish"}
    files = {"image": png(64, 64, b"\0" * 900_000)}
    with running_gateway(tmp_path, environment) as gateway, gateway.client() as client:
        statuses = []
        for _ in range(8):
            try:
                answer = client.post("/v1/images/edits", files=files, data=form, timeout=1)
                statuses.append(answer.status_code)
            except httpx.ReadTimeout:
                statuses.append(200)  # it is drawn, in its time
        assert statuses == [200] * 5 + [503] * 3
        assert (answer.headers["retry-after"], answer.json()["error"]["code"]) == (
            "5",
            "uploads_full",
        )
        assert client.post("/jobs", json={"prompt": "x"}).status_code == 202  # it brings none
        for job in client.get("/jobs").json()["jobs"]:
            client.delete(f"/jobs/{job['id']}")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/images/edits", files=files, data=form, timeout=1)


def test_uploads_on_their_way_count_as_well(tmp_path: Path) -> None:
    environment = {
        **fake_settings(),
        "EASEL_MODELS_DIR": str(drawing_cards(tmp_path)),
        "EASEL_MAX_WAITING_UPLOADS": "16MiB",
    }
    head = (
        b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    )
    with running_gateway(tmp_path, environment) as gateway:
        answers = [b""] * 5
        with contextlib.ExitStack() as stack:
            for number in range(5):
                place = ("127.0.0.1", gateway.port)
                one = stack.enter_context(socket.create_connection(place, timeout=2))
                with contextlib.suppress(ConnectionError):  # refused while it still sends
                    one.sendall(head + b"\0" * 5_000_000)
                with contextlib.suppress(TimeoutError):
                    answers[number] = one.recv(4096)[:12]
        assert answers == [b""] * 4 + [b"HTTP/1.1 503"]
        with gateway.client() as client:
            form = {"prompt": "x", "steps": "4"}
            files = {"image": png(64, 64, b"\0" * 9_000_000)}
            deadline = time.monotonic() + 5
            while (
                status := client.post("/v1/images/edits", files=files, data=form).status_code
            ) == 503 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert status == 200
