"""Terms of a job at the doors: priority, deadline, timeout, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar.testing import RequestFactory

from app.api._http import DoorSettings
from app.api._owner import owner_of
from tests.gateway import Gateway

SLOW = {"prompt": "x", "model": "lab/slow", "steps": 200}


@pytest.fixture
def client(fake_gateway: Gateway) -> Iterator[httpx.Client]:
    with fake_gateway.client() as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/images/generations", "/generate", "/sdapi/v1/txt2img"])
def test_a_job_that_is_too_late_answers_504(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={**SLOW, "deadline": 1})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert "1 s after" in answer.json()["error"]["message"]
    job = client.get("/jobs").json()["jobs"][0]
    assert (job["status"], job["error"]["code"]) == ("expired", "deadline_exceeded")
    assert (job["deadline"], job["eta_seconds"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/images/generations", {"stream": True}),
        ("/v1/images/generations/stream", {}),
        ("/generate/stream", {}),
    ],
)
def test_a_stream_ends_with_the_error(
    client: httpx.Client, path: str, more: dict[str, Any]
) -> None:
    text = client.post(path, json={**SLOW, **more, "deadline": 1}).text
    assert "event: error" in text.rstrip().split("\n\n")[-1]
    assert '"code":"deadline_exceeded"' in text


def test_events_of_a_job_end_with_expired(client: httpx.Client) -> None:
    job = client.post("/jobs", json={**SLOW, "deadline": 1}).json()
    last = client.get(f"/jobs/{job['id']}/events").text.rstrip().split("\n\n")[-1].split("\n")
    assert last[1] == "event: expired"
    assert json.loads(last[2].removeprefix("data: "))["code"] == "deadline_exceeded"


def test_a_timeout_is_of_drawing_and_the_servers_own_limit_stays(client: httpx.Client) -> None:
    answer = client.post("/generate", json={**SLOW, "timeout": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "generation_timeout")
    assert client.post("/generate", json={"prompt": "x", "timeout": 80_000}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", "urgent"),
        ("priority", 1),
        ("deadline", 0.9),
        ("deadline", -1),
        ("deadline", "soon"),
        ("deadline", 1e9),
        ("timeout", 0),
        ("timeout", 1e9),
        ("timeout", True),
    ],
)
@pytest.mark.parametrize("path", ["/v1/images/generations", "/generate", "/jobs", "/estimate"])
def test_nonsense_is_refused_by_name(
    client: httpx.Client, path: str, field: str, value: object
) -> None:
    answer = client.post(path, json={"prompt": "x", field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_priority_is_taken_and_shown(client: httpx.Client) -> None:
    job = client.post("/jobs", json={"prompt": "x", "priority": "background"}).json()
    assert (job["priority"], job["deadline"]) == ("background", None)
    assert client.post("/jobs", json={"prompt": "x"}).json()["priority"] == "interactive"


def test_an_estimate_tells_more_than_a_time(client: httpx.Client) -> None:
    client.post("/generate", json={"prompt": "x"})
    told = client.post("/estimate", json={"prompt": "x", "priority": "background"}).json()
    assert 0 < told["eta_seconds"] < told["eta_seconds_p90"]
    assert (told["model_held"], told["memory_bytes"]) == (True, 0)
    assert told["queue_position"] >= 1


def test_the_wait_tells_its_reason(client: httpx.Client) -> None:
    first = client.post("/jobs", json=SLOW).json()
    second = client.post("/jobs", json=SLOW).json()
    text = client.post("/generate/stream", json={**SLOW, "deadline": 1.5}).text
    waiting = json.loads(text.split("\n\n")[0].partition("data: ")[2])
    assert waiting["reason"].startswith("behind ")
    assert waiting["message"] == (
        f"Waiting in the queue, position {waiting['queue_position']} ({waiting['reason']})"
    )
    for job in (first, second):
        client.delete(f"/jobs/{job['id']}")


@pytest.mark.parametrize(
    ("trusted", "given", "owner"),
    [
        (True, "8d7c-user_1@example.org", "8d7c-user_1@example.org"),
        (False, "8d7c-user_1@example.org", "local"),
        (True, None, "local"),
        (True, "", "local"),
        (True, "two words", "local"),
        (True, "x" * 129, "local"),
        (True, "x" * 128, "x" * 128),
        (True, "new\nline", "local"),
    ],
)
def test_whose_a_job_is(trusted: bool, given: str | None, owner: str) -> None:
    headers = {} if given is None else {"X-OpenWebUI-User-Id": given}
    request = RequestFactory().post("/generate", headers=headers)
    doors = DoorSettings(15.0, "cancel", 0.0, {}, trust_user_header=trusted)
    assert owner_of(request, doors) == owner
