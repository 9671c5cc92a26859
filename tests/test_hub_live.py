"""A picture from a model that was not here: a real gateway, a real worker and a hub on a socket.

Promised: the client sees the download from its first second to its end, the numbers never go the wrong
way, everybody else is served meanwhile, and what comes out is the picture that the same weights draw
from any other place.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway import Gateway, running_gateway
from tests.hub_mirror import COMMIT, Mirror, mirror_of
from tests.shelves import REPO, UNET, repository

CARD = f"""
id = "lab/painter"
family = "stable_diffusion"
source = "hub:{REPO}"
revision = "{COMMIT}"

[defaults]
width = 128
height = 128
num_inference_steps = 3
guidance_scale = 4.0
sampler = "ddim"
"""
BODY = {"prompt": "a red circle", "seed": 7, "width": 128, "height": 128, "steps": 3}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Mirror]:
    with mirror_of({REPO: repository(tmp_path / "repository")}) as started:
        yield started


def environment(folder: Path, hub: Mirror, **given: str) -> dict[str, str]:
    cards = folder / "cards"
    cards.mkdir(exist_ok=True)
    bundled = Path(__file__).parent.parent / "config" / "models" / "sketch.toml"
    (cards / "sketch.toml").write_text(bundled.read_text())
    (cards / "painter.toml").write_text(CARD)
    return {
        "EASEL_MODELS_DIR": str(cards),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "EASEL_PRELOAD": "[]",
        "EASEL_BATCHING": "false",
        **given,
    }


@contextmanager
def gateway_with(folder: Path, hub: Mirror, **given: str) -> Iterator[Gateway]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    with running_gateway(data, environment(folder, hub, **given)) as started:
        yield started


def events(gateway: Gateway, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    found = []
    with (
        gateway.client() as client,
        client.stream("POST", "/generate/stream", json={**BODY, **body}) as answer,
    ):
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def test_the_first_picture_of_a_model_shows_its_download(tmp_path: Path, hub: Mirror) -> None:
    hub.rate = 3e6
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        states = {one["id"]: one["state"] for one in client.get("/models").json()["data"]}
        assert states == {"sketch": "bundled", "lab/painter": "not_downloaded"}
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert listed == ["sketch"]
        seen: list[tuple[str, dict[str, Any]]] = []
        thread = threading.Thread(target=lambda: seen.extend(events(gateway, model="lab/painter")))
        thread.start()
        others, slowest = 0, 0.0
        while thread.is_alive():
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            state = client.get("/models/lab/painter/status").json()
            if state["state"] == "downloading" and not others and state["bytes_total"]:
                listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
                assert listed == ["lab/painter", "sketch"]
                assert client.post("/generate", json=BODY).status_code == 200
                others += client.get("/models/lab%2Fpainter/status").json()["state"] == (
                    "downloading"
                )
            time.sleep(0.02)
        assert others == 1  # a picture of another model was drawn meanwhile
        assert slowest < 0.5
        done = seen[-1]
        same = client.post("/generate", json=BODY).json()
        assert client.get("/models/lab/painter").json()["state"] == "on_disk"
        assert client.delete("/models/lab/painter/files").json()["error"]["code"] == "model_in_use"
    assert done[0] == "done"
    told = [data for name, data in seen if name == "progress"]
    fetching = [data for data in told if data["message"].startswith("Downloading lab/painter")]
    assert len(fetching) >= 3
    assert {data["phase"] for data in fetching} == {"loading_model"}
    assert " of 11." in fetching[-1]["message"]
    assert "MB/s" in fetching[-1]["message"]
    assert all(5.0 <= data["progress"] <= 10.0 for data in fetching)
    assert fetching[-1]["progress"] > 7.0
    for key, sign in (("progress", 1), ("fraction", 1), ("eta_seconds", -1)):
        numbers = [sign * data[key] for data in told if key in data]
        assert numbers == sorted(numbers), key
    phases = list(dict.fromkeys(data["phase"] for data in told))
    assert phases == ["loading_model", "preparing", "generating", "post_processing", "complete"]
    assert done[1]["images"][0]["b64_json"] != ""
    assert _pixels(done[1]) == _pixels(same)


def _pixels(answer: dict[str, Any]) -> bytes:
    from tests.pictures import from_base64

    return bytes(from_base64(answer["images"][0]["b64_json"]).tobytes())


def test_a_gateway_that_dies_in_a_download_goes_on_with_it(tmp_path: Path, hub: Mirror) -> None:
    hub.rate = 3e6
    with gateway_with(tmp_path, hub) as gateway:
        with gateway.client() as client:
            job = client.post("/jobs", json={**BODY, "model": "lab/painter"}).json()["id"]
            while hub.sent.get(UNET, 0) < 4_000_000:
                assert client.get(f"/jobs/{job}").json()["status"] == "queued"
                time.sleep(0.02)
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait()
    hub.rate = 0.0
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        deadline = time.monotonic() + 60
        while (shown := client.get(f"/jobs/{job}").json())["status"] != "succeeded":
            assert shown["error"] is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    resumed = hub.ranges(UNET)[-1]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 3_000_000


def test_a_download_that_fails_fails_its_jobs_with_the_reason(tmp_path: Path, hub: Mirror) -> None:
    hub.statuses = [401]
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        failed = client.post("/generate", json={**BODY, "model": "lab/painter"})
        assert failed.status_code == 500
        error = failed.json()["error"]
        assert error["code"] == "model_unavailable"
        assert "HF_TOKEN" in error["message"]
        asked = len(hub.asked)
        again = client.post("/generate", json={**BODY, "model": "lab/painter"})
        assert again.json()["error"]["code"] == "model_unavailable"
        assert len(hub.asked) == asked  # not so soon
        state = client.get("/models/lab/painter/status").json()
        assert state["state"] == "unavailable"
        assert 0 < state["retry_in"] <= 5
        assert client.post("/generate", json=BODY).status_code == 200
        assert client.post("/models/lab/painter/pull").status_code == 202
        while client.get("/models/lab/painter/status").json()["state"] == "downloading":
            time.sleep(0.02)
        assert client.post("/generate", json={**BODY, "model": "lab/painter"}).status_code == 200


def test_a_hub_that_is_down_is_told_with_the_seconds_to_wait(tmp_path: Path, hub: Mirror) -> None:
    hub.statuses = [502] * 20
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        failed = client.post("/generate", json={**BODY, "model": "lab/painter"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "model_not_fetched")
        assert 1 <= int(failed.headers["retry-after"]) <= 5
        assert "x-should-retry" not in failed.headers
        hub.statuses = []
        time.sleep(int(failed.headers["retry-after"]))
        assert client.post("/generate", json={**BODY, "model": "lab/painter"}).status_code == 200


def test_only_pulls_fetch_where_the_settings_say_so(tmp_path: Path, hub: Mirror) -> None:
    with gateway_with(tmp_path, hub, EASEL_DOWNLOADS="pull") as gateway:
        with gateway.client() as client:
            failed = client.post("/generate", json={**BODY, "model": "lab/painter"})
            assert failed.json()["error"]["code"] == "model_unavailable"
            assert hub.asked == []
        told = _easel("models", "pull", "lab/painter", "--server", gateway.url)
        assert "on disk" in told
        with gateway.client() as client:
            drawn = client.post("/generate", json={**BODY, "model": "lab/painter"})
            assert drawn.status_code == 200


def test_a_model_can_be_fetched_and_held_before_its_first_job(tmp_path: Path, hub: Mirror) -> None:
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        loaded = client.post("/v1/load-model", params={"model_name": "lab/painter"})
        assert loaded.status_code == 200, loaded.text
        assert client.get("/models/lab/painter/status").json()["state"] == "on_disk"
        assert "lab/painter" in client.get("/ready").json()["workers"][0]["models"]


def test_who_leaves_stops_the_download_that_only_he_wanted(tmp_path: Path, hub: Mirror) -> None:
    hub.rate = 1e6
    with gateway_with(tmp_path, hub) as gateway, gateway.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json={**BODY, "model": "lab/painter"}, timeout=2.0)
        deadline = time.monotonic() + 10
        while client.get("/models/lab/painter/status").json()["state"] != "not_downloaded":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get("/jobs").json()["jobs"][0]["status"] == "cancelled"


def test_the_shell_fetches_lists_and_removes_without_a_server(tmp_path: Path, hub: Mirror) -> None:
    given: dict[str, Any] = {**environment(tmp_path, hub), "EASEL_DATA_DIR": str(tmp_path / "data")}
    assert "not downloaded" in _easel("models", **given)
    assert "on disk" in _easel("models", "pull", "lab/painter", **given)
    listed = json.loads(_easel("models", "--json", **given))
    assert {one["id"]: one["state"] for one in listed}["lab/painter"] == "on_disk"
    assert "0.0 GB are free now" in _easel("models", "rm", "lab/painter", **given)
    assert "not downloaded" in _easel("models", **given)
    hub.statuses = [404]
    assert "does not exist" in _easel("models", "pull", "lab/painter", status=1, **given)
    picture = tmp_path / "picture.png"
    drawing = ("generate", "a red circle", "--model", "lab/painter", "-o", str(picture))
    assert "seed" in _easel(*drawing, **given)
    assert picture.stat().st_size > 1000
    assert "on disk" in _easel("models", **given)


def _easel(*arguments: str, status: int = 0, **given: Any) -> str:
    import os

    ended = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout + ended.stderr
