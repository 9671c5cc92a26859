"""A server that ends in the middle of a fallback: the next one draws the picture, and says who did."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engines.picture_text import read
from tests.gateway import Gateway, running_gateway
from tests.pictures import colour_at, corners, pixels
from tests.test_live_fallback import BUNDLED, RED_CIRCLE, SKETCH, events, lost


def until(gateway: Gateway, job_id: str, status: str) -> dict[str, Any]:
    """The job with this status, and at its third step at least if it is `running`."""
    deadline = time.monotonic() + 120
    with gateway.client() as client:
        while True:
            job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
            if job["status"] == status and (status != "running" or (job["step"] or 0) >= 3):
                return job
            assert job["status"] in ("queued", "running"), job
            assert time.monotonic() < deadline, job
            time.sleep(0.02)


def write_models(cards: Path) -> None:
    """`lost` has no folder; `broken` has one that only a worker finds to be so."""
    cards.mkdir()
    broken = lost("broken", '"sketch"').replace("nowhere", "broken")
    for name, text in {
        "sketch": SKETCH,
        "lost": lost("lost", '"sketch"'),
        "broken": broken,
    }.items():
        (cards / f"{name}.toml").write_text(text)
    shutil.copytree(BUNDLED, cards / "broken")
    config = cards / "broken" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 5'))


@pytest.mark.parametrize(("asked", "first"), [("lost", []), ("broken", [(1, "broken")])])
def test_a_fallback_goes_on_after_a_restart(
    tmp_path: Path, asked: str, first: list[tuple[int, str]]
) -> None:
    write_models(tmp_path / "cards")
    (tmp_path / "data").mkdir()
    environment = {"EASEL_MODELS_DIR": str(tmp_path / "cards"), "EASEL_BATCHING": "false"}
    body = {"prompt": RED_CIRCLE, "seed": 3, "model": asked, "steps": 60}
    with running_gateway(tmp_path / "data", environment) as gateway:
        with gateway.client() as client:
            job_id = client.post("/jobs", json=body).json()["id"]
        before = until(gateway, job_id, "running")
        assert (before["model"], before["requested_model"]) == ("sketch", asked)
        gateway.process.kill()
        gateway.process.wait()
    with running_gateway(tmp_path / "data", environment) as gateway:
        job = until(gateway, job_id, "succeeded")
        started = [(one["attempt"], one["model"]) for one in events(gateway, job_id, "started")]
        picture = httpx.get(f"{gateway.url}/images/{job['images'][0]}").content
    assert (job["model"], job["requested_model"]) == ("sketch", asked)
    number = len(first)
    assert started == [*first, (number + 1, "sketch"), (number + 2, "sketch")]
    facts = read(picture).facts
    assert (facts["model"], facts["requested_model"]) == ("sketch", asked)
    drawn = pixels(picture)
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})
