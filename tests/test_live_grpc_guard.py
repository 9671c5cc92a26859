"""Who may come in at the gRPC door, what is refused for now, and how the door closes; over TLS."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from app.settings import ConfigurationError, load_settings
from tests.attacks.conftest import drawing_cards, make_keys
from tests.conftest import fake_settings
from tests.gateway import Gateway, free_port
from tests.grpc_clients import (
    Client,
    Curl,
    Refusal,
    Stubs,
    noise,
    refusal,
    serving_grpc,
    stubs,
)

__all__ = ["stubs"]  # a fixture

LONG: dict[str, Any] = {"model": "lab/slow", "steps": 400}
SERVING, NOT_SERVING = 1, 2


@dataclass
class House:
    """`keys` by the names of their owners, `root` the certificate."""

    gateway: Gateway
    port: int
    keys: dict[str, str]
    root: bytes
    stubs: Stubs

    def client(self, who: str = "", **headers: str) -> Client:
        if who:
            headers["authorization"] = f"Bearer {self.keys[who]}"
        return Client(self.stubs, self.port, headers, self.root)

    def http(self, who: str) -> httpx.Client:
        client = self.gateway.client()
        client.headers["authorization"] = f"Bearer {self.keys[who]}"
        return client


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, stubs: Stubs) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("keyed")
    keys = asyncio.run(make_keys(folder))
    certificate, key = self_signed(folder)
    environment = {
        **fake_settings(),
        "EASEL_MODELS_DIR": str(drawing_cards(folder)),
        "EASEL_TRUST_USER_HEADER": "true",
        "EASEL_MAX_UPLOAD": "8000000",
        "EASEL_MAX_WAITING_UPLOADS": "3000000",
        "EASEL_GRPC_CERTIFICATE": str(certificate),
        "EASEL_GRPC_KEY": str(key),
    }
    with serving_grpc(folder, environment) as (gateway, port):
        yield House(gateway, port, keys, certificate.read_bytes(), stubs)


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    about = (
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    )
    files = ("-out", str(certificate), "-keyout", str(key))
    subprocess.run([*make, *about, *files], check=True, capture_output=True, timeout=60)
    return certificate, key


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer none"},
        {"authorization": "Bearer easel-000000000000-" + "0" * 64},
        {"x-api-key": "none"},
    ],
    ids=["none", "a dummy", "a wrong one", "another header"],
)
def test_without_a_key_nothing_is_told(house: House, headers: dict[str, str]) -> None:
    client = house.client(**headers)
    with client:
        for call in (
            lambda: client.images.GenerateImage(client.request(image=bytes(2_000_000))),
            lambda: client.images.GenerateImageStream(client.request()),
            lambda: client.images.GetImageModels(client.pb.ModelRequest()),
            lambda: client.watch("01M80JF93MVZ6ZJEJ2GK9F7X4N"),
            lambda: Curl(client.channel).methods(),
        ):
            told = refusal(call)
            assert (told.code, told.reason) == (StatusCode.UNAUTHENTICATED, "invalid_api_key")
        assert client.health.Check(health_pb2.HealthCheckRequest()).status == SERVING
    assert "req_" in dict(told.trailing)["x-request-id"]


def test_a_key_opens_the_door_and_is_in_the_log_by_its_id(house: House) -> None:
    for client in (house.client("ann"), house.client(**{"x-api-key": house.keys["ann"]})):
        with client:
            drawn = client.images.GenerateImage(client.request())
            assert client.job(drawn.request_id).owner == "ann"
    log = house.gateway.log.read_text()
    calls = [json.loads(line) for line in log.splitlines() if '"event": "call"' in line]
    assert house.keys["ann"].split("-")[1] in {call.get("key") for call in calls}
    assert not any(key.rpartition("-")[2] in log for key in house.keys.values())


def test_every_method_says_whom_it_lets_in(house: House) -> None:
    from app.api.grpc.calls import ACCESS

    with house.client("ann") as client:
        assert Curl(client.channel).methods() == set(ACCESS)
    with house.client("fetcher") as client:
        told = refusal(lambda: client.images.GenerateImage(client.request()))
        assert (told.code, told.reason) == (StatusCode.PERMISSION_DENIED, "not_allowed")
        assert client.images.GetImageModels(client.pb.ModelRequest()).models


def test_what_is_somebody_elses_is_not_there(house: House) -> None:
    with house.client("ann") as ann, house.client("bob") as bob, house.client("chief") as chief:
        drawn = ann.images.GenerateImage(ann.request())
        for call in (bob.job, bob.watch, bob.cancel):
            told = refusal(lambda call=call: call(drawn.request_id))  # type: ignore[misc]
            assert (told.code, told.reason) == (StatusCode.NOT_FOUND, "not_found")
        assert chief.job(drawn.request_id).owner == "ann"


def test_users_behind_a_key_are_told_apart(house: House) -> None:
    users = {"x-openwebui-user-id": "zoe"}
    with house.client("ann") as ann, house.client("ann", **users) as zoe:
        named = ann.images.GenerateImage(ann.request(user_id="zoe")).request_id
        assert ann.images.GenerateImage(ann.request(user_id="two words")).request_id
        assert zoe.job(named).owner == "ann/zoe"
        assert refusal(lambda: ann.job(named)).code is StatusCode.NOT_FOUND
        with house.http("ann") as http:
            assert http.get(f"/jobs/{named}").status_code == 404


# -- not now ---------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again(house: House) -> None:
    with house.client("ann") as client, house.http("ann") as http:
        taken = [http.post("/jobs", json={"prompt": "x", **LONG}).json()["id"] for _ in range(4)]
        try:
            told = refusal(lambda: client.images.GenerateImage(client.request()))
        finally:
            for job in taken:
                client.cancel(job)
    assert (told.code, told.reason) == (StatusCode.RESOURCE_EXHAUSTED, "queue_full")
    assert told.retry in range(1, 60)


def test_limits_of_a_key_are_told(house: House) -> None:
    def asking(who: str) -> Refusal:
        with house.client(who) as client:
            return refusal(
                lambda: [client.images.GenerateImage(client.request()) for _ in range(4)]
            )

    hasty, poor = asking("hasty"), asking("poor")
    assert (hasty.code, hasty.reason) == (StatusCode.RESOURCE_EXHAUSTED, "rate_limit_exceeded")
    assert hasty.retry in range(1, 60)
    assert (poor.code, poor.reason) == (StatusCode.RESOURCE_EXHAUSTED, "insufficient_quota")
    assert poor.retry is None  # clients would ask again by themselves until midnight


def test_pictures_that_arrive_have_room_together(house: House) -> None:
    with house.client("ann") as client:
        told = refusal(lambda: client.images.GenerateImage(client.request(image=bytes(3_500_000))))
        assert (told.code, told.reason) == (StatusCode.RESOURCE_EXHAUSTED, "uploads_full")
        fits = refusal(lambda: client.images.GenerateImage(client.request(image=bytes(2_500_000))))
        assert (fits.code, fits.field) == (StatusCode.INVALID_ARGUMENT, "image")
        again = refusal(lambda: client.images.GenerateImage(client.request(image=bytes(2_500_000))))
        assert again.code is StatusCode.INVALID_ARGUMENT  # what was held was let go of
        large = noise(900)
        assert 2_000_000 < len(large) < 3_000_000
        assert client.images.GenerateImage(client.request(image=large)).image_data


# -- what fails ------------------------------------------------------------------------------------


def test_pictures_that_are_there_are_not_lost_with_those_that_are_not(house: House) -> None:
    with house.client("ann") as client:
        base = client.request(model="lab/slow", steps=14, seed=5, timeout=1.0)
        ask = client.pb.ImageVariationsRequest(base_request=base, count=3)
        answers = list(client.images.GenerateImageVariations(ask))
        drawn = [one for one in answers if one.image_data]
        assert 1 <= len(drawn) < 3
        assert not any(one.error for one in drawn)
        missing = answers[len(drawn) :]
        assert all(one.error.startswith("generation_timeout: ") for one in missing)
        assert [one.metadata.seed for one in answers] == [5, 6, 7]
        told = refusal(
            lambda: client.images.GenerateImage(
                client.request(model="lab/slow", steps=400, timeout=1)
            )
        )
        assert (told.code, told.reason) == (StatusCode.DEADLINE_EXCEEDED, "generation_timeout")


# -- how it ends -----------------------------------------------------------------------------------


def test_health_follows_the_worker_and_calls_end_with_the_server(
    tmp_path: Path, stubs: Stubs
) -> None:
    """A worker that dies, another server that finds the port taken, and then SIGTERM."""
    environment = {
        **fake_settings(),
        "EASEL_DRAIN_SECONDS": "1.5",
        "EASEL_MAX_RUNNING": "2",
    }
    with serving_grpc(tmp_path, environment) as (gateway, port), Client(stubs, port) as client:
        watching = Watching(client, "starweave.ImageGenerationService")
        watching.until([SERVING])
        watching.forget()
        [worker] = gateway.workers()
        worker.kill()
        watching.until([NOT_SERVING, SERVING])
        other = tmp_path / "other"
        other.mkdir()
        refused = subprocess.run(
            [sys.executable, "-m", "app", "serve", "--port", str(free_port())],
            env={
                "PATH": "",
                "HOME": str(other),
                "EASEL_DATA_DIR": str(other),
                **fake_settings(),
                "EASEL_GRPC_PORT": str(port),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (refused.returncode, "the port is taken" in refused.stderr) == (2, True)

        call = client.images.GenerateImageStream(client.request(**LONG))
        assert next(event for event in call if event.progress.step == 2)
        soon = client.images.GenerateImage.future(client.request(model="lab/slow", steps=10))
        assert any(event.progress.step >= 6 for event in call)
        begun = time.monotonic()
        gateway.process.terminate()
        assert soon.result().image_data  # it was done in the time that running jobs get
        told = refusal(lambda: call)
        assert (told.code, told.reason) == (StatusCode.UNAVAILABLE, "server_draining")
        assert told.retry == 10
        watching.until([NOT_SERVING, SERVING, NOT_SERVING])
        assert watching.ended() is StatusCode.UNAVAILABLE
        gateway.process.wait(20)
        assert time.monotonic() - begun < 8


class Watching:
    """What a watcher of health is told."""

    def __init__(self, client: Client, service: str) -> None:
        self._call: Any = client.health.Watch(health_pb2.HealthCheckRequest(service=service))
        self._told: list[int] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def until(self, told: list[int]) -> None:
        due = time.monotonic() + 30
        while self._told[-len(told) :] != told:
            assert time.monotonic() < due, self._told
            time.sleep(0.02)

    def forget(self) -> None:
        self._told.clear()

    def ended(self) -> StatusCode:
        self._thread.join(10)
        code: StatusCode = self._call.code()
        return code

    def _listen(self) -> None:
        try:
            for one in self._call:
                self._told.append(one.status)
        except grpc.RpcError:
            pass


def test_a_certificate_without_its_key_does_not_serve(tmp_path: Path) -> None:
    for name in ("grpc_certificate", "grpc_key"):
        settings = load_settings(**{name: tmp_path / "a.pem"})
        with pytest.raises(ConfigurationError, match="go together"):
            settings.grpc_tls()
    certificate, key = self_signed(tmp_path)
    missing = tmp_path / "missing.pem"
    for pair, why in (((key, key), "no certificate"), ((certificate, missing), "cannot be read")):
        refused = subprocess.run(
            [sys.executable, "-m", "app", "serve", "--port", str(free_port())],
            env={
                "PATH": "",
                "HOME": str(tmp_path),
                **fake_settings(),
                "EASEL_DATA_DIR": str(tmp_path),
                "EASEL_GRPC_PORT": str(free_port()),
                "EASEL_GRPC_CERTIFICATE": str(pair[0]),
                "EASEL_GRPC_KEY": str(pair[1]),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (refused.returncode, why in " ".join(refused.stderr.split())) == (2, True)
