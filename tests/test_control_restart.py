"""A job under control when the server ends in the middle of it, or is asked to draw it again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engines.image_codec import Pixels
from tests.control_house import CONTROL, SEED, asked, build, by_hand, encoded
from tests.gateway import Gateway, running_gateway
from tests.kinds import PROMPT, SIDE
from tests.pictures import pixels

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 40
HOW = {"controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.9}


def until(gateway: Gateway, job_id: str, wanted: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    with gateway.client() as client:
        while True:
            job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
            if job["status"] == wanted and (wanted != "running" or job["step"]):
                return job
            assert job["status"] in ("queued", "running"), job
            assert time.monotonic() < deadline, job
            time.sleep(0.02)


def picture(gateway: Gateway, job: dict[str, Any]) -> Pixels:
    return pixels(httpx.get(f"{gateway.url}/images/{job['images'][0]}").content)


@pytest.mark.timeout(400)  # two servers, and what they should have drawn
def test_an_interrupted_job_is_drawn_under_the_control_that_it_was_given(tmp_path: Path) -> None:
    environment = build(tmp_path, ["sd"], ["canny"])
    given = {**asked("sd", "text2image"), "num_inference_steps": STEPS}
    control = {"model": "canny", "image": encoded(CONTROL), **HOW}
    body = {"model": "sd", "seed": SEED, "size": f"{SIDE}x{SIDE}", "prompt": PROMPT, **given}
    with running_gateway(tmp_path / "data", environment) as gateway:
        with gateway.client() as client:
            job_id = client.post("/jobs", json={**body, "control": control}).json()["id"]
        until(gateway, job_id, "running")
        gateway.process.kill()
        gateway.process.wait()
    wanted = by_hand(tmp_path, "sd", "text2image", CONTROL, num_inference_steps=STEPS, **HOW)
    with running_gateway(tmp_path / "data", environment) as gateway:
        job = until(gateway, job_id, "succeeded")
        assert job["attempt"] == 2
        assert np.array_equal(picture(gateway, job), wanted)
        with gateway.client() as client:
            again = client.post(f"/jobs/{job_id}/replay").json()["id"]
        assert np.array_equal(picture(gateway, until(gateway, again, "succeeded")), wanted)
