"""OpenAI's SDK for Node and Vercel's AI SDK against a real gateway with a real model."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.clients.running import (
    HERE,
    assert_only_the_right_half_changed,
    jobs,
    losing_the_first_answer,
    printed_by,
    red_circle_in,
    right_half_mask_in,
)
from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64, pixels

INSTALL_SECONDS = 280
PROVIDERS = ["@ai-sdk/openai", "@ai-sdk/openai-compatible"]
RED_CIRCLE = "a red circle on a white background"
BLUE_CIRCLE = "a blue circle on a white background"
QUICK: dict[str, Any] = {"num_inference_steps": 4}

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None,
        reason="needs node and npm",
    ),
]


@pytest.fixture(scope="session", autouse=True)
def _packages() -> None:
    """The packages of tests/clients/package.json, in their exact versions."""
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"],
        cwd=HERE,
        check=True,
        timeout=INSTALL_SECONDS,
    )


@pytest.fixture
def red_png(tmp_path: Path) -> Path:
    return red_circle_in(tmp_path)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return right_half_mask_in(tmp_path)


def sdk(
    url: str,
    method: str = "generate",
    *,
    files: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    retries: int = 0,
    **body: Any,
) -> dict[str, Any]:
    """What the `openai` package makes of a call."""
    call = {
        "base_url": f"{url}/v1",
        "method": method,
        "body": body,
        "files": files or {},
        "headers": headers or {},
        "retries": retries,
    }
    return printed_by(["node", "openai_images.mjs"], call)


def ai(gateway: Gateway, provider: str, prompt: str, **given: Any) -> dict[str, Any]:
    """What `generateImage` of the `ai` package makes of a call."""
    call = {
        "base_url": f"{gateway.url}/v1",
        "provider": provider,
        "model": given.pop("model", "sketch"),
        "prompt": prompt,
        "images": [str(path) for path in given.pop("images", [])],
        "mask": str(given.pop("mask", "")),
        "options": given,
    }
    return printed_by(["node", "ai_images.mjs"], call)


# -- openai ----------------------------------------------------------------------------------------


def test_the_sdk_draws_a_picture_and_sees_its_seed(gateway: Gateway) -> None:
    printed = sdk(gateway.url, prompt=RED_CIRCLE, seed=5)
    answer = printed["answer"]
    picture = from_base64(answer["data"][0]["b64_json"])
    assert (colour_at(picture, 0.5, 0.5), corners(picture)) == ("red", {"white"})
    assert (answer["size"], answer["data"][0]["seed"]) == ("256x256", 5)
    assert "url" not in answer["data"][0]
    assert printed["request_id"].startswith("req_")


def test_two_pictures_come_in_each_format(gateway: Gateway) -> None:
    for name in ("png", "jpeg", "webp"):
        printed = sdk(gateway.url, prompt="x", n=2, output_format=name, seed=1, **QUICK)
        assert [image["seed"] for image in printed["answer"]["data"]] == [1, 2]
        for image in printed["answer"]["data"]:
            data = io.BytesIO(base64.b64decode(image["b64_json"]))
            assert Image.open(data).format == name.upper()


def test_a_url_can_be_fetched(gateway: Gateway) -> None:
    image = sdk(gateway.url, prompt="x", response_format="url", **QUICK)["answer"]["data"][0]
    assert "b64_json" not in image
    assert pixels(httpx.get(image["url"]).content).shape == (256, 256, 3)


@pytest.mark.parametrize("partials", [0, 1, 2, 3])
def test_a_stream_shows_partial_images_in_order_and_then_the_picture(
    gateway: Gateway, partials: int
) -> None:
    printed = sdk(gateway.url, prompt=RED_CIRCLE, stream=True, partial_images=partials, seed=5)
    *shown, last = printed["events"]
    assert [event["type"] for event in shown] == ["image_generation.partial_image"] * partials
    assert [event["partial_image_index"] for event in shown] == list(range(partials))
    progress = [event["progress"] for event in shown]
    assert progress == sorted(set(progress))
    for event in shown:
        assert (event["seed"], event["total_steps"], event["image_index"]) == (5, 12, 0)
        assert from_base64(event["b64_json"]).shape == (256, 256, 3)
    assert (last["type"], last["seed"]) == ("image_generation.completed", 5)
    assert colour_at(from_base64(last["b64_json"]), 0.5, 0.5) == "red"
    assert last["usage"]["total_tokens"] > 256


@pytest.mark.parametrize("as_list", [False, True], ids=["image", "image[]"])
def test_an_edit_of_a_file_recolours_it(gateway: Gateway, red_png: Path, as_list: bool) -> None:
    image: Any = {"stream": str(red_png)}
    files = {"image": [image] if as_list else image}
    printed = sdk(gateway.url, "edit", files=files, prompt=BLUE_CIRCLE, strength=0.8, seed=5)
    picture = from_base64(printed["answer"]["data"][0]["b64_json"])
    assert colour_at(picture, 0.5, 0.5) == "blue"


def test_an_edit_with_a_mask_keeps_the_rest(gateway: Gateway, red_png: Path, mask: Path) -> None:
    files = {"mask": {"bytes": str(mask)}, "image": {"bytes": str(red_png)}}
    printed = sdk(gateway.url, "edit", files=files, prompt="a blue circle on a green background")
    assert_only_the_right_half_changed(printed["answer"]["data"][0]["b64_json"], red_png)


def test_a_streamed_edit_has_events_of_its_own_kind(gateway: Gateway, red_png: Path) -> None:
    files = {"image": {"stream": str(red_png)}}
    printed = sdk(
        gateway.url, "edit", files=files, prompt="x", stream=True, partial_images=1, **QUICK
    )
    kinds = [event["type"] for event in printed["events"]]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


def test_a_variation_draws(gateway: Gateway, red_png: Path) -> None:
    printed = sdk(gateway.url, "createVariation", files={"image": {"bytes": str(red_png)}}, n=2)
    assert len(printed["answer"]["data"]) == 2


def test_errors_are_of_the_kinds_that_the_sdk_has(gateway: Gateway) -> None:
    wrong = sdk(gateway.url, prompt="x", size="banana")["error"]
    assert (wrong["kind"], wrong["status"], wrong["param"]) == ("BadRequestError", 400, "size")
    assert wrong["requestID"].startswith("req_")
    streamed = sdk(gateway.url, prompt="", stream=True)["error"]
    assert (streamed["kind"], streamed["param"]) == ("BadRequestError", "prompt")
    missing = sdk(gateway.url, model="nothing-here", prompt="x")["error"]
    assert (missing["kind"], missing["status"]) == ("NotFoundError", 404)
    assert (missing["code"], missing["param"]) == ("model_not_found", "model")


# -- attempts that are repeated --------------------------------------------------------------------


def test_a_retry_gets_the_picture_of_the_first_attempt(gateway: Gateway) -> None:
    prompt = "a red circle whose first answer is lost"
    with losing_the_first_answer(gateway, prompt) as url:
        printed = sdk(url, prompt=prompt, on_hang_up="finish", retries=2)
    assert printed["headers"]["idempotent-replayed"] == "true"
    (job,) = jobs(gateway, prompt)
    assert printed["answer"]["job_id"] == job["id"]
    assert len(printed["answer"]["data"]) == 1


def test_a_retry_of_an_upload_gets_the_picture_of_the_first_attempt(
    gateway: Gateway, red_png: Path
) -> None:
    prompt = "a blue circle whose first answer is lost"
    files = {"image": {"bytes": str(red_png)}}
    with losing_the_first_answer(gateway, prompt) as url:
        printed = sdk(url, "edit", files=files, prompt=prompt, on_hang_up="finish", retries=2)
    assert printed["headers"]["idempotent-replayed"] == "true"
    assert len(jobs(gateway, prompt)) == 1


def test_an_idempotency_key_draws_once(gateway: Gateway) -> None:
    prompt = "a circle with a key"
    headers = {"Idempotency-Key": "circle-1"}
    first, second = (sdk(gateway.url, prompt=prompt, headers=headers, **QUICK) for _ in range(2))
    assert first["answer"]["data"] == second["answer"]["data"]
    assert "idempotent-replayed" not in first["headers"]
    assert second["headers"]["idempotent-replayed"] == "true"
    assert len(jobs(gateway, prompt)) == 1
    other = sdk(gateway.url, prompt="another circle", headers=headers)["error"]
    assert (other["kind"], other["param"]) == ("UnprocessableEntityError", "Idempotency-Key")


# -- ai --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_ai_sdk_draws_two_pictures_of_a_size(gateway: Gateway, provider: str) -> None:
    printed = ai(gateway, provider, RED_CIRCLE, n=2, size="256x256")
    assert printed["media_types"] == ["image/png"] * 2
    assert printed["images"][0] != printed["images"][1]
    for image in printed["images"]:
        assert from_base64(image).shape == (256, 256, 3)
        assert colour_at(from_base64(image), 0.5, 0.5) == "red"
    assert printed["usage"]["outputTokens"] == 512
    assert printed["warnings"] == []
    assert from_base64(ai(gateway, provider, "x", size="128x192")["images"][0]).shape[0] == 192


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_ai_sdk_edits_with_and_without_a_mask(
    gateway: Gateway, provider: str, red_png: Path, mask: Path
) -> None:
    prompt = "a blue circle on a green background"
    masked = ai(gateway, provider, prompt, images=[red_png], mask=mask)
    assert_only_the_right_half_changed(masked["images"][0], red_png)
    whole = ai(gateway, provider, BLUE_CIRCLE, images=[red_png])
    assert from_base64(whole["images"][0]).shape == (256, 256, 3)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_ai_sdk_sees_what_was_wrong_and_does_not_try_again(
    gateway: Gateway, provider: str
) -> None:
    missing = ai(gateway, provider, "x", model="nothing-here")["error"]
    assert (missing["name"], missing["statusCode"]) == ("AI_APICallError", 404)
    assert not missing["isRetryable"]
    assert "nothing-here" in missing["message"] or "model" in missing["message"]
    wrong = ai(gateway, provider, "x", size="9x9")["error"]
    assert (wrong["statusCode"], "width" in wrong["message"]) == (400, True)


def test_the_ai_sdk_passes_our_own_fields_and_fetches_addresses(gateway: Gateway) -> None:
    own: dict[str, Any] = {"easel": {"seed": 7, **QUICK}}
    provider = "@ai-sdk/openai-compatible"
    told = ai(gateway, provider, "x", providerOptions=own)
    own["easel"]["response_format"] = "url"
    fetched = ai(gateway, provider, "x", providerOptions=own)
    assert np.array_equal(from_base64(told["images"][0]), from_base64(fetched["images"][0]))
