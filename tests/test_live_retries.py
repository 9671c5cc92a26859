"""Retries, hang-ups by policy, partial images and slow answers, over real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.pictures import colour_at, corners, from_base64
from tests.test_live_endings import LONG, hang_up, post, until
from tests.test_live_streams import read

GENERATIONS = "/v1/images/generations"
RETRY = {"x-stainless-retry-count": "1"}


def jobs_with(gateway: Gateway, prompt: str) -> list[dict[str, Any]]:
    with gateway.client() as client:
        found: list[dict[str, Any]] = client.get("/jobs", params={"q": prompt}).json()["jobs"]
        return found


def test_a_retry_gets_the_picture_of_the_first_attempt(fake_gateway: Gateway) -> None:
    body = {"prompt": "retried once"}
    with fake_gateway.client() as client:
        first = client.post(GENERATIONS, json=body)
        again = client.post(GENERATIONS, json=body, headers=RETRY)
        other = client.post(GENERATIONS, json=body)
    assert again.json()["data"] == first.json()["data"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert other.json()["data"] != first.json()["data"]
    assert len(jobs_with(fake_gateway, "retried once")) == 2


def test_a_retry_joins_a_job_that_still_runs(fake_gateway: Gateway) -> None:
    body = {**LONG, "prompt": "joined", "steps": 30, "on_hang_up": "finish"}
    sock = post(fake_gateway, GENERATIONS, body)
    job = until(fake_gateway, lambda job: job["prompt"] == "joined" and job["step"])
    hang_up(sock)
    with fake_gateway.client() as client:
        again = client.post(GENERATIONS, json=body, headers=RETRY)
    assert (again.status_code, again.json()["job_id"]) == (200, job["id"])


def test_a_retry_after_a_cancelled_job_draws_anew(fake_gateway: Gateway) -> None:
    body = {**LONG, "prompt": "given up", "steps": 30}
    sock = post(fake_gateway, GENERATIONS, body)
    job = until(fake_gateway, lambda job: job["prompt"] == "given up" and job["step"])
    hang_up(sock)
    until(fake_gateway, lambda now: now["id"] == job["id"] and now["status"] == "cancelled")
    with fake_gateway.client() as client:
        again = client.post(GENERATIONS, json=body, headers=RETRY)
    assert again.status_code == 200
    assert again.json()["job_id"] != job["id"]


def test_an_idempotency_key_draws_once_and_refuses_another_body(fake_gateway: Gateway) -> None:
    key = {"idempotency-key": "a-key"}
    with fake_gateway.client() as client:
        first = client.post(GENERATIONS, json={"prompt": "keyed"}, headers=key)
        again = client.post(GENERATIONS, json={"prompt": "keyed"}, headers=key)
        other = client.post(GENERATIONS, json={"prompt": "other"}, headers=key)
        bad = client.post(GENERATIONS, json={"prompt": "x"}, headers={"idempotency-key": "a b"})
    assert again.json() == first.json()
    assert len(jobs_with(fake_gateway, "keyed")) == 1
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize(("policy", "end"), [("finish", "succeeded"), ("grace:1", "cancelled")])
def test_what_a_hang_up_does_can_be_asked_for(fake_gateway: Gateway, policy: str, end: str) -> None:
    steps = 30 if end == "succeeded" else 900
    body = {**LONG, "prompt": policy, "steps": steps, "on_hang_up": policy}
    sock = post(fake_gateway, GENERATIONS, body)
    job = until(fake_gateway, lambda job: job["prompt"] == policy and job["step"])
    hang_up(sock)
    time.sleep(0.3)
    with fake_gateway.client() as client:
        assert client.get(f"/jobs/{job['id']}").json()["status"] == "running"
    ended = until(fake_gateway, lambda now: now["id"] == job["id"] and now["status"] != "running")
    assert ended["status"] == end


def test_a_policy_that_is_none_is_refused(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        answer = client.post(GENERATIONS, json={"prompt": "x", "on_hang_up": "shrug"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "on_hang_up")


@pytest.fixture(scope="module")
def patient_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One that keeps plain answers alive with spaces after 0.3 s."""
    settings = {**fake_settings(), "EASEL_JSON_HEARTBEAT_AFTER": "0.3"}
    with running_gateway(tmp_path_factory.mktemp("data"), settings) as started:
        yield started


def test_slow_plain_answers_are_kept_alive_with_spaces(patient_gateway: Gateway) -> None:
    with patient_gateway.client() as client:
        slow = client.post(GENERATIONS, json={**LONG, "steps": 20})
        quick = client.post(GENERATIONS, json={"prompt": "x"})
    assert slow.text.startswith("  ")
    assert len(json.loads(slow.text)["data"]) == 1
    assert quick.text.startswith("{")


def test_slow_plain_answers_still_notice_a_hang_up(patient_gateway: Gateway) -> None:
    for wait in (0.0, 0.6):  # before the first space, and after
        sock = post(patient_gateway, GENERATIONS, LONG)
        job = until(patient_gateway, lambda job: job["status"] == "running" and job["step"])
        time.sleep(wait)
        hang_up(sock)
        until(patient_gateway, lambda now, own=job["id"]: now["id"] == own and cancelled(now), 3)


def cancelled(job: dict[str, Any]) -> bool:
    return bool(job["status"] == "cancelled")


@pytest.mark.parametrize("partials", [0, 1, 2, 3])
def test_partial_images_are_spread_over_the_steps(fake_gateway: Gateway, partials: int) -> None:
    body = {"prompt": "x", "steps": 12, "stream": True, "partial_images": partials, "n": 2}
    with fake_gateway.client() as client, client.stream("POST", GENERATIONS, json=body) as answer:
        frames = [data for _, data, _ in read(answer)]
    kinds = [data["type"].removeprefix("image_generation.") for data in frames]
    assert kinds.count("completed") == 2
    assert kinds[-1] == "completed"
    assert kinds.count("partial_image") == 2 * partials
    shown = [data for data in frames if "partial_image_index" in data]
    for index in (0, 1):  # drawn at the same time, or one after the other
        own = [data for data in shown if data["image_index"] == index]
        assert [data["partial_image_index"] for data in own] == list(range(partials))
        assert {data["seed"] for data in own} <= {
            frames[-1]["seed"],
            *(f.get("seed") for f in frames),
        }
        done = [at for at, data in enumerate(frames) if data.get("image_index") == index]
        assert frames[done[-1]]["type"] == "image_generation.completed"
    for data in shown:
        assert {"phase", "progress", "total_steps", "eta_seconds", "queue_position"} <= data.keys()
        assert {"b64_json", "created_at", "size", "quality", "background", "output_format"} <= (
            data.keys()
        )


def test_a_partial_image_at_half_of_the_steps_shows_the_right_colours(gateway: Gateway) -> None:
    for prompt, centre, corner in (
        ("a red circle on a white background", "red", "white"),
        ("a yellow circle on a blue background", "yellow", "blue"),
    ):
        body = {"prompt": prompt, "seed": 3, "stream": True, "partial_images": 1}
        with gateway.client() as client, client.stream("POST", GENERATIONS, json=body) as answer:
            frames = [data for _, data, _ in read(answer)]
        partial, completed = (from_base64(data["b64_json"]) for data in frames)
        assert partial.shape == completed.shape
        assert (colour_at(partial, 0.5, 0.5), corners(partial)) == (centre, {corner})


def test_progress_events_come_only_when_asked_for(fake_gateway: Gateway) -> None:
    body = {"prompt": "x", "steps": 5, "stream": True, "stream_progress": True}
    with fake_gateway.client() as client, client.stream("POST", GENERATIONS, json=body) as answer:
        frames = [(event, data) for event, data, _ in read(answer)]
    steps = [
        data["step"]
        for event, data in frames
        if event == "image_generation.progress" and data.get("step")
    ]
    assert steps == [1, 2, 3, 4, 5]
    assert frames[-1][0] == "image_generation.completed"


def test_fields_that_mean_nothing_here_are_told_in_a_header(fake_gateway: Gateway) -> None:
    body = {"prompt": "x", "user": "me", "style": "vivid", "frobnicate": 1, "bad name\r\n": 2}
    with fake_gateway.client() as client:
        answer = client.post(GENERATIONS, json=body)
        refused = client.post(GENERATIONS, json={"prompt": "x", "svg": {}})
    assert answer.headers["x-easel-ignored"] == "frobnicate"
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "svg")


@pytest.mark.parametrize(
    ("quality", "steps", "echo"),
    [("low", 2, "low"), ("high", 6, "high"), ("auto", 4, "medium"), ("odd", 4, "medium")],
)
def test_quality_is_a_preset_of_steps(
    fake_gateway: Gateway, quality: str, steps: int, echo: str
) -> None:
    with fake_gateway.client() as client:
        answer = client.post(GENERATIONS, json={"prompt": "x", "quality": quality}).json()
        job = client.get(f"/jobs/{answer['job_id']}").json()
        given = client.post(GENERATIONS, json={"prompt": "x", "quality": "low", "steps": 9}).json()
        explicit = client.get(f"/jobs/{given['job_id']}").json()
    assert (job["num_inference_steps"], answer["quality"]) == (steps, echo)
    assert explicit["num_inference_steps"] == 9


def test_slashes_too_many_do_no_harm_and_ids_may_hold_some(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        assert client.get("//v1///models").status_code == 200
        assert client.post("/v1//images/generations", json={"prompt": "x"}).status_code == 200
        for path in ("/v1/models/lab/slow", "/v1/models/lab%2Fslow", "/models/quick"):
            assert client.get(path).json()["id"] in ("lab/slow", "fake")


def test_aliases_of_the_settings_name_models(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_ALIASES": '{"sdxl": "lab/slow"}'}
    with running_gateway(tmp_path, settings) as gateway:
        answer = httpx.post(f"{gateway.url}/estimate", json={"prompt": "x", "model": "sdxl"})
    assert answer.json()["model"] == "lab/slow"
