"""What the serving process is, seen from outside."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.gateway import Gateway


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_the_web_process_holds_no_torch_and_its_worker_does(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.post("/generate", json={"prompt": "x", "steps": 1}).status_code == 200
    assert "libtorch" not in libraries(gateway.process.pid)
    assert [child.pid for child in gateway.workers() if "libtorch" in libraries(child.pid)]


def test_one_process_listens_and_the_workers_are_its_descendants(gateway: Gateway) -> None:
    def listening(process: psutil.Process) -> list[int]:
        return [c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN]

    assert listening(psutil.Process(gateway.process.pid)) == [gateway.port]
    assert gateway.workers()
    assert [listening(child) for child in gateway.workers()] == [[]] * len(gateway.workers())


def test_health_and_ready(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        ready = client.get("/ready").json()
    assert ready["ready"] is True
    assert "sketch" in ready["workers"][0]["models"]


def test_jobs_of_every_door_are_listed_newest_first_and_searched(gateway: Gateway) -> None:
    with gateway.client() as client:
        one = client.post("/generate", json={"prompt": "a Zebra at noon", "steps": 1}).json()
        two = client.post("/jobs", json={"prompt": "the zebra at night", "steps": 1}).json()
        client.post("/v1/images/generations", json={"prompt": "a zebrafish", "steps": 1})
        found = client.get("/jobs", params={"q": "ZEBRA AT"}).json()["jobs"]
        assert [job["id"] for job in found] == [two["id"], one["job_id"]]
        shown = client.get(f"/jobs/{one['job_id']}").json()
    assert (shown["status"], shown["progress"], shown["eta_seconds"]) == ("succeeded", 100.0, 0.0)
    assert shown["model"] == "sketch"
    assert len(shown["images"]) == 1


def test_the_schema_describes_every_route(gateway: Gateway) -> None:
    with gateway.client() as client:
        schema = client.get("/schema/openapi.json").json()
    assert {
        "/v1/images/generations",
        "/v1/images/generations/stream",
        "/generate",
        "/generate/stream",
        "/generate/stable/stream",
        "/generate/flux/stream",
        "/jobs",
        "/jobs/{job_id}/events",
        "/images/{image_id}",
        "/estimate",
        "/health",
        "/ready",
    } <= schema["paths"].keys()


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", ""])
def test_the_images_route_is_served_under_the_prefixes_that_clients_use(
    gateway: Gateway, prefix: str
) -> None:
    with gateway.client() as client:
        answer = client.post(
            f"{prefix}/images/generations?api-version=2024-01", json={"prompt": "x", "steps": 1}
        )
    assert answer.status_code == 200
