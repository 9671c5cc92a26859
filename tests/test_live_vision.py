"""The vision service's routes against a real gateway: its clients' own lines, and its messages."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import __version__
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.pictures import colour_at, corners, from_base64, pixels

RED_CIRCLE = "a red circle on a white background"
SLOW = {"prompt": "slow", "model": "lab/slow"}


def run(gateway: Gateway, line: str, folder: Path) -> str:
    """A line of the service's own manual, with this gateway's port."""
    line = line.replace("localhost:8005", f"127.0.0.1:{gateway.port}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout.decode()


class Listener:
    """Reads the stream of messages in a thread, with the time at which each came."""

    def __init__(self, gateway: Gateway, user: str = "") -> None:
        self.heard: list[tuple[float, dict[str, Any]]] = []
        self._client = gateway.client()
        headers = {"x-openwebui-user-id": user} if user else {}
        self._stream = self._client.stream("GET", "/v1/progress-stream", headers=headers)
        self.response = self._stream.__enter__()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self.response.iter_lines():
                if line.startswith("data: "):
                    self.heard.append((time.time(), json.loads(line[6:])))
        except httpx.HTTPError:
            pass

    def of(self, job_id: str) -> list[str]:
        return [told["message"] for _, told in self.heard if told.get("job_id") == job_id]

    def until(self, wanted: Any, seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := wanted(self):
                return found
            time.sleep(0.02)
        raise AssertionError(f"it was not told: {self.heard}")

    def close(self) -> None:
        self._stream.__exit__(None, None, None)
        self._client.close()
        self._thread.join(5)


@contextmanager
def listening(gateway: Gateway, user: str = "") -> Iterator[Listener]:
    listener = Listener(gateway, user)
    try:
        yield listener
    finally:
        listener.close()


def draw(gateway: Gateway, **body: Any) -> httpx.Response:
    with gateway.client() as client:
        return client.post("/v1/generate-image", json={"prompt": "x", **body})


# -- the lines of its manual -----------------------------------------------------------------------


def test_the_banner(gateway: Gateway, tmp_path: Path) -> None:
    told = json.loads(run(gateway, "curl -fsS http://localhost:8005/", tmp_path))
    assert told == {"service": "vision_service", "version": __version__, "status": "running"}


def test_the_dragon(gateway: Gateway, tmp_path: Path) -> None:
    """Word for word: a model that nobody has here, at a size that the one in its place cannot draw."""
    line = """curl -X POST http://localhost:8005/v1/generate-image \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A majestic dragon in flight",
    "width": 1024,
    "height": 1024,
    "num_inference_steps": 4,
    "model": "flux-schnell"
  }' | jq -r '.image_bytes_b64' | base64 -d > dragon.png"""
    run(gateway, line, tmp_path)
    assert pixels((tmp_path / "dragon.png").read_bytes()).shape == (512, 512, 3)


def test_the_model_info_and_the_load(gateway: Gateway, tmp_path: Path) -> None:
    info = json.loads(run(gateway, "curl http://localhost:8005/v1/model-info | jq", tmp_path))
    assert info == {
        "cuda_available": info["device"] == "cuda",
        "device": info["device"],
        "current_model": "sketch",
        "model_loaded": True,
        "available_models": ["sketch-flux", "sketch"],
    }
    line = "curl -fsS -X POST 'http://localhost:8005/v1/load-model?model_name=flux-dev'"
    told = json.loads(run(gateway, line, tmp_path))
    assert told == {
        "status": "success",
        "message": "Model sketch loaded in place of flux-dev",
        "model": "sketch",
    }


def test_the_stream_is_read_by_curl(gateway: Gateway, tmp_path: Path) -> None:
    told = draw(gateway, steps=2).json()
    line = "curl -sN --max-time 2 http://localhost:8005/v1/progress-stream || test $? = 28"
    text = run(gateway, line, tmp_path)
    lines = [json.loads(one[6:]) for one in text.splitlines() if one.startswith("data: ")]
    assert [one["message"] for one in lines if one["job_id"] == told["job_id"]] == [
        "Generating 256x256 image (2 steps)...",
        "Running diffusion process...",
        "✓ Image generated successfully!",
    ]
    assert "✓ Image generated successfully!" in text


# -- pictures --------------------------------------------------------------------------------------


def test_a_picture_and_all_that_is_told_of_it(gateway: Gateway) -> None:
    body = {"prompt": RED_CIRCLE, "negative_prompt": "blue", "seed": 3, "guidance_scale": 5.0}
    answer = draw(gateway, **body, num_inference_steps=10, width=256, height=192, model="sketch")
    told = answer.json()
    assert answer.status_code == 200
    drawn = from_base64(told.pop("image_bytes_b64"))
    assert drawn.shape == (192, 256, 3)
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})
    assert 0 < told.pop("generation_time") < 100
    with gateway.client() as client:
        job = client.get(f"/jobs/{told.pop('job_id')}").json()
    assert (job["door"], job["status"], job["seed"]) == ("vision", "succeeded", 3)
    assert told == {
        **body,
        "format": "png",
        "width": 256,
        "height": 192,
        "num_inference_steps": 10,
        "model": "sketch",
        "requested_model": "sketch",
    }


def test_a_name_that_is_built_into_clients_stands_for_the_chosen_model(
    fake_gateway: Gateway,
) -> None:
    with fake_gateway.client() as client:
        try:
            chosen = client.post("/v1/load-model?model_name=lab/slow").json()
            info = client.get("/v1/model-info").json()
            told = draw(fake_gateway, model="sdxl-lightning", width=4096, height=1024).json()
            unnamed = draw(fake_gateway, model="").json()
        finally:
            client.post("/v1/load-model?model_name=quick")
        back = client.get("/v1/model-info").json()
    assert chosen["model"] == info["current_model"] == "lab/slow"
    assert info["model_loaded"] is True
    assert (info["device"], info["cuda_available"]) == ("fake", False)
    assert (told["model"], told["requested_model"]) == ("lab/slow", "sdxl-lightning")
    assert (told["width"], told["height"]) == (2048, 512)
    assert (unnamed["model"], unnamed["requested_model"]) == ("lab/slow", "lab/slow")
    assert back["current_model"] == "fake"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "flux-pro"}, 404, "model"),
        ({"model": "fake", "width": 4096}, 400, "width"),
        ({"model": "flux-dev", "width": -1}, 400, "width"),
        ({"model": "flux-dev", "width": 0}, 400, "width"),
        ({"model": "flux-dev", "height": 10**400}, 400, "height"),
        ({"n": 2}, 400, "n"),
        ({"steps": 3, "num_inference_steps": 4}, 400, "num_inference_steps"),
        ({"seed": "x"}, 400, "seed"),
        ({"prompt": " "}, 400, "prompt"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    fake_gateway: Gateway, body: dict[str, Any], status: int, param: str
) -> None:
    answer = draw(fake_gateway, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("?model_name=", 400), ("?model_name=flux-pro", 404)]
)
def test_what_cannot_be_loaded_is_refused(fake_gateway: Gateway, query: str, status: int) -> None:
    with fake_gateway.client() as client:
        answer = client.post(f"/v1/load-model{query}")
        assert client.get("/v1/model-info").json()["current_model"] == "fake"
    assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_a_body_under_another_content_type_is_415(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        headers = {"content-type": "text/plain"}
        answer = client.post("/v1/generate-image", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 415


def test_pictures_are_png_unless_another_format_is_asked_for(fake_gateway: Gateway) -> None:
    usual, jpeg = draw(fake_gateway).json(), draw(fake_gateway, output_format="jpeg").json()
    assert base64.b64decode(usual["image_bytes_b64"]).startswith(b"\x89PNG")
    assert base64.b64decode(jpeg["image_bytes_b64"]).startswith(b"\xff\xd8")
    assert (usual["format"], jpeg["format"]) == ("png", "jpeg")


def test_a_client_that_leaves_stops_its_job_and_that_is_told(fake_gateway: Gateway) -> None:
    with listening(fake_gateway) as listener, fake_gateway.client() as client:
        with (
            httpx.Client(base_url=fake_gateway.url, timeout=1.0) as hasty,
            pytest.raises(httpx.ReadTimeout),
        ):
            hasty.post("/v1/generate-image", json={**SLOW, "prompt": "hurry", "steps": 900})
        job = client.get("/jobs?q=hurry").json()["jobs"][0]
        listener.until(lambda one: "✗ Image generation cancelled" in one.of(job["id"]), 5)
        assert client.get(f"/jobs/{job['id']}").json()["status"] == "cancelled"


# -- messages --------------------------------------------------------------------------------------


def test_each_message_comes_when_it_happens(fake_gateway: Gateway) -> None:
    """Ten steps of 50 ms lie between the second message and the last."""
    with listening(fake_gateway) as listener, fake_gateway.client() as client:
        job = client.post("/jobs", json={**SLOW, "steps": 10}).json()
        listener.until(lambda one: "✓ Image generated successfully!" in one.of(job["id"]))
        assert listener.response.headers["content-type"].startswith("text/event-stream")
        heard = {
            told["message"]: (at, told)
            for at, told in listener.heard
            if told.get("job_id") == job["id"]
        }
    assert list(heard)[-3:] == [
        "Generating 64x64 image (10 steps)...",
        "Running diffusion process...",
        "✓ Image generated successfully!",
    ]
    running, done = heard["Running diffusion process..."], heard["✓ Image generated successfully!"]
    assert done[0] - running[0] > 0.35
    for at, told in heard.values():
        assert abs(at - told["timestamp"]) < 0.5
        assert told["model"] == "lab/slow"


def test_loading_is_told_of_a_model_that_is_not_there_and_of_no_other(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("data")
    with running_gateway(data, fake_settings()) as fresh, listening(fresh) as listener:
        first, second = (draw(fresh, **SLOW, steps=1).json()["job_id"] for _ in range(2))
        listener.until(lambda one: len(one.of(second)) == 3)
        assert listener.of(first)[0] == "Loading lab/slow model..."
        assert len(listener.of(first)) == 4
        with fresh.client() as client:
            assert client.post("/v1/load-model?model_name=lab/batch").status_code == 200
            assert client.post("/v1/load-model?model_name=lab/batch").status_code == 200
        listener.until(lambda one: one.heard[-1][1]["message"] == "Loading lab/batch model...")
        assert [told["message"] for _, told in listener.heard].count(
            "Loading lab/batch model..."
        ) == 1


def test_who_comes_late_hears_the_last_hundred(fake_gateway: Gateway) -> None:
    last = [draw(fake_gateway, steps=1).json()["job_id"] for _ in range(35)][-1]
    with listening(fake_gateway) as listener:
        listener.until(lambda one: len(one.of(last)) >= 3)
        heard = [told["message"] for _, told in listener.heard]
        assert len(heard) == 100
        again = draw(fake_gateway, steps=1).json()["job_id"]
        listener.until(lambda one: len(one.of(again)) == 3)


def test_who_waits_and_who_fails_is_told(fake_gateway: Gateway) -> None:
    with listening(fake_gateway) as listener, fake_gateway.client() as client:
        first = client.post("/jobs", json={**SLOW, "steps": 100}).json()["id"]
        client.post("/jobs", json={**SLOW, "steps": 1})
        third = client.post("/jobs", json={**SLOW, "steps": 1, "timeout": 1}).json()["id"]
        late = client.post("/jobs", json={**SLOW, "steps": 400, "deadline": 1}).json()["id"]
        listener.until(lambda one: one.of(late)[-1:] and one.of(late)[-1].startswith("✗"))
        client.delete(f"/jobs/{first}")
        listener.until(lambda one: len(one.of(third)) >= 3)
    assert listener.of(third)[0] == "Waiting in the queue (position 2)..."
    assert listener.of(late)[-1].startswith("✗ Image generation failed: The job was not done 1 s")


def test_messages_are_the_callers_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {**fake_settings(), "EASEL_TRUST_USER_HEADER": "true"}
    data, body, hers = tmp_path_factory.mktemp("data"), {"prompt": "x"}, "x-openwebui-user-id"
    with (
        running_gateway(data, environment) as shared,
        listening(shared, "ann") as ann,
        listening(shared, "bob") as bob,
    ):
        with shared.client() as client:
            job = client.post("/generate", json=body, headers={hers: "ann"}).json()["job_id"]
        ann.until(lambda one: len(one.of(job)) >= 3)
        assert bob.heard == []
