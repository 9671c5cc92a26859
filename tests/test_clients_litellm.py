"""litellm against a real gateway with a real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.running import (
    HERE,
    assert_only_the_right_half_changed,
    printed_by,
    red_circle_in,
    right_half_mask_in,
)
from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64

RED_CIRCLE = "a red circle on a white background"
INSTALL_SECONDS = 500
ENVIRONMENT = HERE / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session", autouse=True)
def _litellm() -> None:
    """litellm in an environment of its own: it wants other versions than the tests do."""
    wanted = (HERE / "litellm.txt").read_text()
    installed = ENVIRONMENT / "installed.txt"
    if installed.exists() and installed.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    subprocess.run([*pip, "-r", str(HERE / "litellm.txt")], check=True, timeout=INSTALL_SECONDS)
    installed.write_text(wanted)


def litellm(gateway: Gateway, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    """What litellm makes of each call; together, since it takes seconds to import."""
    url = {"api_base": f"{gateway.url}/v1"}
    told = [{**call, "given": {**url, **call["given"]}} for call in calls]
    # Without the setting, litellm fetches a table of prices when it is imported.
    program = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", str(PYTHON), "litellm_images.py"]
    results: list[dict[str, Any]] = printed_by(program, {"calls": told})["results"]
    return results


def generation(**given: Any) -> dict[str, Any]:
    given = {"model": "openai/sketch", **given}
    return {"function": "image_generation", "given": given, "paths": {}}


def edit(prompt: str, **paths: Path) -> dict[str, Any]:
    given = {"model": "openai/sketch", "prompt": prompt, "strength": 0.9, "seed": 5}
    told = {name: str(path) for name, path in paths.items()}
    return {"function": "image_edit", "given": given, "paths": told}


def test_litellm_draws_pictures_and_passes_our_own_fields(gateway: Gateway) -> None:
    seeded = generation(prompt="x", seed=7, num_inference_steps=2)
    two, once, again = litellm(
        gateway, generation(prompt=RED_CIRCLE, n=2, size="256x256"), seeded, seeded
    )
    assert len(two["answer"]["data"]) == 2
    for image in two["answer"]["data"]:
        picture = from_base64(image["b64_json"])
        assert picture.shape == (256, 256, 3)
        assert (colour_at(picture, 0.5, 0.5), corners(picture)) == ("red", {"white"})
    assert two["answer"]["usage"]["output_tokens"] == 512
    assert once["answer"]["data"][0]["b64_json"] == again["answer"]["data"][0]["b64_json"]


def test_litellm_edits_with_and_without_a_mask(gateway: Gateway, tmp_path: Path) -> None:
    red, mask = red_circle_in(tmp_path), right_half_mask_in(tmp_path)
    whole, half = litellm(
        gateway,
        edit("a blue circle on a white background", image=red),
        edit("a blue circle on a green background", image=red, mask=mask),
    )
    picture = from_base64(whole["answer"]["data"][0]["b64_json"])
    assert colour_at(picture, 0.5, 0.5) == "blue"
    assert_only_the_right_half_changed(half["answer"]["data"][0]["b64_json"], red)


def test_litellm_sees_what_was_wrong(gateway: Gateway) -> None:
    missing, wrong = litellm(
        gateway,
        generation(prompt="x", model="openai/nothing-here"),
        generation(prompt="x", size="banana"),
    )
    assert (missing["kind"], missing["status"]) == ("NotFoundError", 404)
    assert (wrong["kind"], wrong["status"]) == ("BadRequestError", 400)
    assert "size must be like" in wrong["message"]
