"""`/generate/ws`, by a real client on a real socket."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pybase64
import pytest
from websockets.sync.client import ClientConnection, connect

from app.store.links import Links
from tests.conftest import fake_settings
from tests.documented import run_example
from tests.gateway import Gateway, running_gateway

Json = dict[str, Any]


@contextmanager
def talk(gateway: Gateway, key: str = "") -> Iterator[ClientConnection]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = f"ws://127.0.0.1:{gateway.port}/generate/ws"
    with connect(address, additional_headers=headers, max_size=None) as socket:
        yield socket


def say(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def hear(socket: ClientConnection) -> Json:
    """The next message; with `picture`, the bytes that it announces."""
    told: Json = json.loads(socket.recv(timeout=60))
    if told["type"] in ("preview", "picture"):
        data = socket.recv(timeout=60)
        assert isinstance(data, bytes)
        assert len(data) == told["bytes"]
        told["picture"] = data
    return told


def hear_all(socket: ClientConnection) -> list[Json]:
    """To the end of one job."""
    heard = [hear(socket)]
    while heard[-1]["type"] not in ("done", "error"):
        heard.append(hear(socket))
    return heard


def of(heard: list[Json], kind: str) -> list[Json]:
    return [one for one in heard if one["type"] == kind]


def test_a_picture_comes_as_bytes_with_its_previews_and_progress(gateway: Gateway) -> None:
    wish = {"prompt": "a red circle on a white background", "seed": 5, "preset": "strict"}
    with talk(gateway) as socket:
        say(socket, type="generate", tag="mine", partial_images=2, **wish)
        heard = hear_all(socket)
    assert {one["tag"] for one in heard} == {"mine"}
    assert heard[0]["type"] == "accepted"
    assert {one["job_id"] for one in heard} == {heard[0]["job_id"]}
    progress = [one["progress"] for one in of(heard, "progressed")]
    assert progress == sorted(progress)
    assert progress[-1] == 100.0
    assert all("eta_seconds" in one for one in [*of(heard, "queued"), *of(heard, "progressed")])
    numbers = [one["id"] for one in heard if "id" in one]
    assert numbers == sorted(numbers)

    previews = of(heard, "preview")
    assert len(previews) == 2
    (picture,) = of(heard, "picture")
    assert (picture["index"], picture["seed"], picture["media_type"]) == (0, 5, "image/png")
    with gateway.client() as client:
        drawn = client.post("/generate", json=wish).json()["images"][0]["b64_json"]
        assert pybase64.b64decode(drawn) == picture["picture"]
        assert client.get(f"/images/{picture['image_id']}").content == picture["picture"]
        job = client.get(f"/jobs/{heard[0]['job_id']}").json()
    assert (job["door"], job["status"]) == ("websocket", "succeeded")
    assert heard[-1]["type"] == "done"


def test_jobs_of_one_socket_go_on_side_by_side(fake_gateway: Gateway) -> None:
    with talk(fake_gateway) as socket:
        for tag in ("a", "b"):
            say(socket, type="generate", tag=tag, prompt=tag, n=2)
        heard: list[Json] = []
        while len(of(heard, "done")) < 2:
            heard.append(hear(socket))
    for tag in ("a", "b"):
        own = [one for one in heard if one["tag"] == tag]
        assert len({one["job_id"] for one in own}) == 1
        assert [one["index"] for one in of(own, "picture")] == [0, 1]


def test_a_job_is_cancelled_by_word_and_by_leaving(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        with talk(fake_gateway) as socket:
            say(socket, type="generate", prompt="long", model="lab/slow", steps=100)
            job = hear(socket)["job_id"]
            while hear(socket)["type"] != "progressed":
                pass
            say(socket, type="cancel", job_id=job)
            began = time.monotonic()
            heard = hear_all(socket)
            assert time.monotonic() - began < 1
            assert heard[-1]["error"]["code"] == "cancelled"
            assert client.get(f"/jobs/{job}").json()["status"] == "cancelled"

            say(socket, type="generate", prompt="left", model="lab/slow", steps=100)
            left = hear(socket)["job_id"]
        deadline = time.monotonic() + 2
        while client.get(f"/jobs/{left}").json()["status"] != "cancelled":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_job_of_another_door_is_cancelled_here_and_the_other_way_round(
    fake_gateway: Gateway,
) -> None:
    wish = {"prompt": "long", "model": "lab/slow", "num_inference_steps": 100}
    with fake_gateway.client() as client, talk(fake_gateway) as socket:
        other = client.post("/jobs", json=wish).json()["id"]
        say(socket, type="cancel", job_id=other)
        assert client.get(f"/jobs/{other}/events").text.count("event: cancelled") == 1
        say(socket, type="generate", **wish)
        mine = hear(socket)["job_id"]
        assert client.delete(f"/jobs/{mine}").json()["status"] == "cancelled"
        assert hear_all(socket)[-1]["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ("{", "invalid_value", "body"),
        ("[" * 100_000, "invalid_value", "body"),
        ("[]", "invalid_value", "body"),
        (b"\x00", "invalid_value", "body"),
        ('{"type": "dance"}', "invalid_value", "type"),
        ('{"type": "generate"}', "invalid_value", "prompt"),
        ('{"type": "generate", "prompt": 7}', "invalid_value", "prompt"),
        ('{"type": "generate", "prompt": "x", "model": "nobody"}', "model_not_found", "model"),
        ('{"type": "generate", "prompt": "x", "size": "banana"}', "invalid_value", "size"),
        ('{"type": "generate", "prompt": "x", "tag": "a\\nb"}', "invalid_value", "tag"),
        ('{"type": "cancel", "job_id": "../../etc"}', "not_found", "id"),
        ('{"type": "cancel"}', "invalid_value", "job_id"),
    ],
)
def test_what_is_wrong_is_told_and_the_socket_goes_on(
    fake_gateway: Gateway, sent: str | bytes, code: str, param: str
) -> None:
    with talk(fake_gateway) as socket:
        socket.send(sent)
        told = hear(socket)
        assert (told["type"], told["error"]["code"], told["error"]["param"]) == (
            "error",
            code,
            param,
        )
        say(socket, type="generate", prompt="x")
        assert hear_all(socket)[-1]["type"] == "done"


def test_whose_key_is_revoked_draws_no_more_on_an_open_socket(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        here = Links.open(tmp_path).local_pass()
        client.headers["authorization"] = f"Bearer {here}"
        made = client.post("/keys", json={"name": "mine", "scopes": ["generate"]}).json()
        with talk(gateway, made["key"]) as socket:
            say(socket, type="generate", prompt="x")
            assert hear_all(socket)[-1]["type"] == "done"
            assert client.delete(f"/keys/{made['id']}").status_code == 200
            say(socket, type="generate", prompt="x", tag="late")
            told = hear(socket)
            assert (told["error"]["code"], told["tag"]) == ("invalid_api_key", "late")
            say(socket, type="cancel", job_id="x")
            assert hear(socket)["error"]["code"] == "invalid_api_key"


def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_DRAIN_SECONDS": "0"}
    with running_gateway(tmp_path, settings) as gateway, talk(gateway) as socket:
        say(socket, type="generate", prompt="long", model="lab/slow", steps=100)
        while hear(socket)["type"] != "progressed":
            pass
        gateway.process.terminate()
        assert hear_all(socket)[-1]["error"]["code"] in ("server_draining", "cancelled")


def test_the_program_of_the_document_draws(gateway: Gateway, tmp_path: Path) -> None:
    told = run_example("websocket.md", gateway, tmp_path)
    assert "100 %, 0.0 s left" in told
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
