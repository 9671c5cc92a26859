"""A server that comes back to jobs."""

from __future__ import annotations

import time
from pathlib import Path

from tests.conftest import fake_settings
from tests.gateway import running_gateway

LONG = {"prompt": "x", "model": "lab/slow", "num_inference_steps": 400}


def test_a_job_that_goes_on_does_not_keep_the_server_from_being_ready(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        job = client.post("/jobs", json=LONG).json()["id"]
        while client.get(f"/jobs/{job}").json()["status"] != "running":
            time.sleep(0.02)
        gateway.process.kill()
        gateway.process.wait()
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        shown = client.get(f"/jobs/{job}").json()  # it takes 20 s, and the server is ready
        assert shown["status"] in ("queued", "running")
        client.delete(f"/jobs/{job}")
