"""The streams of `/generate` and its twins, and of jobs, byte by byte as their clients read them."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64

PHASES = {
    "initializing": (0, 5),
    "loading_model": (5, 15),
    "preparing": (15, 20),
    "generating": (20, 90),
    "post_processing": (90, 100),
    "complete": (100, 100),
}


def read(response: httpx.Response) -> list[tuple[str, dict[str, Any], str | None]]:
    """(event, data, id) of each frame; comments are left out."""
    frames = []
    for frame in "".join(response.iter_text()).split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":")
        )
        if fields:
            frames.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return frames


def stream(
    gateway: Gateway, path: str, **body: Any
) -> list[tuple[str, dict[str, Any], str | None]]:
    with (
        gateway.client() as client,
        client.stream("POST", path, json={"prompt": "x", **body}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return read(response)


@pytest.mark.parametrize("path", ["/generate/stream", "/generate/stable/stream"])
def test_every_step_is_told_with_the_seeds_phases_and_numbers(gateway: Gateway, path: str) -> None:
    frames = stream(gateway, path, prompt="a red circle on a white background", steps=20, seed=3)
    progress = [data for event, data, _ in frames if event == "progress"]

    assert [event for event, _, _ in frames] == ["progress"] * len(progress) + ["done"]
    assert all(number is None for _, _, number in frames)
    for data in progress:
        assert {"phase", "progress", "message", "timestamp", "eta_seconds"} <= data.keys()
        low, high = PHASES[data["phase"]]
        assert low <= data["progress"] <= high
        assert isinstance(data["eta_seconds"], float)
    assert list(dict.fromkeys(data["phase"] for data in progress)) == list(PHASES)

    steps = [data for data in progress if data["phase"] == "generating"]
    assert [data["step"] for data in steps] == list(range(1, 21))
    assert [data["message"] for data in steps] == [f"Generating step {k}/20" for k in range(1, 21)]
    assert steps[9]["progress"] == 55.0
    etas = [data["eta_seconds"] for data in progress]
    assert etas == sorted(etas, reverse=True)
    assert etas[0] > 0
    assert etas[-1] == 0

    done = frames[-1][1]
    assert done["done"] is True
    picture = from_base64(done["images"][0]["b64_json"])
    assert colour_at(picture, 0.5, 0.5) == "red"
    assert corners(picture) == {"white"}


def test_events_come_when_they_happen_and_not_at_the_end(gateway: Gateway) -> None:
    arrived = []
    with (
        gateway.client() as client,
        client.stream("POST", "/generate/stream", json={"prompt": "x", "steps": 60}) as response,
    ):
        for line in response.iter_lines():
            if "Generating step" in line:
                arrived.append((time.time(), json.loads(line.removeprefix("data: "))["timestamp"]))
    assert len(arrived) == 60
    assert arrived[-1][0] - arrived[0][0] > 0.2
    assert max(here - there for here, there in arrived) < 1.0


def test_flux_has_its_own_door(gateway: Gateway) -> None:
    frames = stream(gateway, "/generate/flux/stream", steps=4)
    assert frames[-1][1]["model"] == "sketch-flux"
    with gateway.client() as client:
        wrong = client.post("/generate/flux", json={"prompt": "x", "model": "sketch"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model")


def test_the_plain_route_answers_with_pictures_and_what_was_drawn(gateway: Gateway) -> None:
    body = {"prompt": "x", "steps": 3, "cfg_scale": 2, "sampling_method": "euler_a", "seed": 9}
    with gateway.client() as client:
        answer = client.post("/generate", json=body)
    assert answer.status_code == 200
    told = answer.json()
    assert told["parameters"]["sampling_method"] == "euler_a"
    assert (told["parameters"]["steps"], told["parameters"]["cfg_scale"]) == (3, 2.0)
    assert told["images"][0]["seed"] == 9
    assert from_base64(told["images"][0]["b64_json"]).shape == (256, 256, 3)


def test_openai_bodies_can_be_streamed_with_progress(gateway: Gateway) -> None:
    frames = stream(gateway, "/v1/images/generations/stream", size="128x128", n=2, steps=3)
    assert frames[-1][0] == "done"
    assert len(frames[-1][1]["data"]) == 2
    assert frames[-1][1]["size"] == "128x128"
    steps = [data["step"] for event, data, _ in frames if event == "progress" and data.get("step")]
    assert steps == list(range(1, 7))


def test_waiting_is_told_as_initializing_with_the_place_in_line(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        first = client.post("/jobs", json={"prompt": "x", "model": "lab/slow", "steps": 20}).json()
        frames = stream(fake_gateway, "/generate/stream", steps=2)
        waiting = [data for _, data, _ in frames if data.get("queue_position")]
        assert waiting[0]["phase"] == "initializing"
        assert waiting[0]["progress"] == 0
        assert waiting[0]["eta_seconds"] > 0.4
        assert "position 1" in waiting[0]["message"]
        assert client.get(f"/jobs/{first['id']}").json()["status"] == "succeeded"


def test_silence_is_filled_with_comments(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        job = client.post("/jobs", json={"prompt": "x", "model": "lab/slow", "steps": 60}).json()
        with client.stream(
            "POST", "/v1/images/generations", json={"prompt": "x", "stream": True}
        ) as response:
            text = "".join(response.iter_text())
        client.delete(f"/jobs/{job['id']}")
    assert text.startswith(": heartbeat\n\n")
    assert text.endswith("\n\n")
    assert "id:" not in text.split("data:")[0]


def test_job_events_replay_from_any_number_and_end_by_themselves(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        created = client.post("/jobs", json={"prompt": "x", "steps": 5})
        assert created.status_code == 202
        path = f"/jobs/{created.json()['id']}/events"
        with client.stream("GET", path) as response:
            live = read(response)
        with client.stream("GET", path, headers={"Last-Event-ID": "3"}) as response:
            replayed = read(response)
        bad = client.get(path, headers={"Last-Event-ID": "banana"})
    assert [int(number or 0) for _, _, number in live] == list(range(1, len(live) + 1))
    assert [event for event, _, _ in live][:2] == ["queued", "started"]
    assert live[-1][0] == "succeeded"
    assert replayed == live[3:]
    assert bad.status_code == 400


def test_a_failure_is_told_in_the_stream(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        job = client.post("/jobs", json={"prompt": "x", "model": "lab/slow", "steps": 900}).json()
        path = "/generate/stream"
        with client.stream("POST", path, json={"prompt": "waits"}) as response:
            lines = response.iter_lines()
            first = json.loads(next(line for line in lines if "data:" in line)[6:])
            client.delete(f"/jobs/{first['job_id']}")
            rest = "\n".join(lines)
        client.delete(f"/jobs/{job['id']}")
    assert "event: error" in rest
    data = json.loads(rest.split("event: error\ndata: ")[1])
    assert (data["phase"], data["code"]) == ("error", "cancelled")
    assert data["error"] == data["message"]
