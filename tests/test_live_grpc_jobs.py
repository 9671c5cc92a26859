"""Jobs at the gRPC door: what becomes of them when their client leaves, and those of other doors."""

from __future__ import annotations

import time
from typing import Any

import grpc
import httpx
import pytest
from grpc import StatusCode

from tests.grpc_clients import Client, client, http, refusal, refusal_of, serving, stubs

__all__ = ["client", "http", "serving", "stubs"]  # fixtures

SMALL: dict[str, Any] = {"steps": 4, "width": 128, "height": 128}
LONG: dict[str, Any] = {"steps": 100, "width": 512, "height": 512}


# -- clients that leave ----------------------------------------------------------------------------


def until_ended(http: httpx.Client, job_id: str, within: float) -> dict[str, Any]:
    begun = time.monotonic()
    while (job := http.get(f"/jobs/{job_id}").json())["status"] in ("queued", "running"):
        assert time.monotonic() - begun < within, job
        time.sleep(0.02)
    told: dict[str, Any] = job
    return told


def at_step(call: Any, step: int) -> Any:
    """The event that tells of this step."""
    for event in call:
        if event.progress.step >= step:
            return event
    raise AssertionError("the job was too quick")


def test_a_client_that_cancels_ends_its_job_within_a_step(
    client: Client, http: httpx.Client
) -> None:
    call = client.images.GenerateImageStream(client.request(**LONG))
    event = at_step(call, 2)
    call.cancel()
    job = until_ended(http, event.job_id, 2)
    assert (job["status"], job["step"] <= event.progress.step + 2) == ("cancelled", True)
    waiting = client.images.GenerateImage.future(client.request(**LONG))
    while (newest := http.get("/jobs?limit=1").json()["jobs"][0])["id"] == event.job_id:
        time.sleep(0.02)
    waiting.cancel()
    assert until_ended(http, newest["id"], 2)["status"] == "cancelled"


def test_a_deadline_ends_the_job(client: Client, http: httpx.Client) -> None:
    told = refusal(lambda: client.images.GenerateImage(client.request(**LONG), timeout=0.8))
    assert told.code is StatusCode.DEADLINE_EXCEEDED
    newest = http.get("/jobs?limit=1").json()["jobs"][0]
    job = until_ended(http, newest["id"], 1)
    assert job["status"] in ("cancelled", "expired")
    assert 0.5 < job["deadline"] < 0.9  # the schedule knew of it


# -- jobs of other doors ---------------------------------------------------------------------------


def test_a_job_of_http_is_watched_and_cancelled_here(client: Client, http: httpx.Client) -> None:
    body = {"prompt": "a red circle", "steps": 100, "size": "512x512"}
    job_id = http.post("/jobs", json=body).json()["id"]
    event = at_step(client.watch(job_id), 2)
    assert client.job(job_id).status == "running"
    watching = client.watch(job_id, after=event.number)
    assert client.cancel(job_id).status == "cancelled"
    later = list(watching)
    assert later[0].number == event.number + 1
    assert (later[-1].ended.status, later[-1].ended.door) == ("cancelled", "jobs")
    assert http.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
    assert client.cancel(job_id).status == "cancelled"  # a second time changes nothing


def test_a_job_of_here_is_watched_and_cancelled_over_http(
    client: Client, http: httpx.Client
) -> None:
    call = client.images.GenerateImageStream(client.request(**LONG))
    event = at_step(call, 2)
    with http.stream("GET", f"/jobs/{event.job_id}/events") as events:
        lines = events.iter_lines()
        assert next(line for line in lines if '"step":1' in line)
        assert http.delete(f"/jobs/{event.job_id}").json()["status"] == "cancelled"
        assert "event: cancelled" in list(lines)
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    told = refusal_of(raised.value)
    assert (told.code, told.reason) == (StatusCode.CANCELLED, "cancelled")


def test_a_job_is_found_with_its_pictures(client: Client, http: httpx.Client) -> None:
    drawn = client.images.GenerateImage(client.request(seed=4, **SMALL))
    bare, whole = (
        client.job(drawn.request_id, with_images=with_images) for with_images in (False, True)
    )
    assert (bare.status, bare.door, bare.n, bare.progress.progress) == ("succeeded", "grpc", 1, 100)
    assert [one.image_data for one in bare.images] == [b""]
    assert [one.image_data for one in whole.images] == [drawn.image_data]
    events = list(client.watch(drawn.request_id, with_images=True))
    assert [one.image.image_data for one in events if one.HasField("image")] == [drawn.image_data]
    http.delete(f"/images/{drawn.metadata.image_id}")
    [gone] = client.job(drawn.request_id, with_images=True).images
    assert (gone.image_data, gone.error.partition(":")[0]) == (b"", "not_found")
    last = events[-1].number
    assert [one.number for one in client.watch(drawn.request_id, after=last - 1)] == [last]
