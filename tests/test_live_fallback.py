"""A model that cannot be loaded, and one that the server chooses, at a real gateway."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engines.picture_text import read
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.pictures import colour_at, corners, from_base64

BUNDLED = Path(__file__).parent.parent / "app" / "bundled_models" / "sketch"
CONFIG = Path(__file__).parent.parent / "config" / "models"
RED_CIRCLE = "a red circle on a white background"

SKETCH = (CONFIG / "sketch.toml").read_text()
HUGE = """
id = "huge"
family = "flux"
source = "huge"
fallback = ["sketch"]
defaults = { width = 256, height = 256, sampler = "euler" }
"""


def write_weights_that_fit_nowhere(folder: Path) -> None:
    """40 TB, as their header says."""
    (folder / "transformer").mkdir(parents=True)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "Transformer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    tensor = {"dtype": "F32", "shape": [10**6, 10**7], "data_offsets": [0, 4 * 10**13]}
    header = json.dumps({"weight": tensor}).encode()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def lost(name: str, fallback: str = "", max_side: int = 1024) -> str:
    """A card for a folder that is not there."""
    return f"""
id = "{name}"
family = "stable_diffusion"
source = "nowhere"
fallback = [{fallback}]
tasks = ["text2image", "image2image"]
defaults = {{ width = 192, height = 192, num_inference_steps = 3, sampler = "euler_a" }}
limits = {{ max_side = {max_side} }}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    models = tmp_path_factory.mktemp("cards")
    for name, text in {
        "sketch": SKETCH,
        "huge": HUGE,
        "lost": lost("lost", '"gone", "broken", "sketch"'),
        "broken": lost("broken").replace("nowhere", "broken"),
        "gone": lost("gone"),
    }.items():
        (models / f"{name}.toml").write_text(text)
    write_weights_that_fit_nowhere(models / "huge")
    shutil.copytree(BUNDLED, models / "broken")
    config = models / "broken" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 5'))
    environment = {"EASEL_MODELS_DIR": str(models), "EASEL_BATCHING": "false"}
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


def draw(gateway: Gateway, path: str = "/v1/images/generations", **body: Any) -> httpx.Response:
    with gateway.client() as client:
        return client.post(path, json={"prompt": RED_CIRCLE, "seed": 3, **body})


def events(gateway: Gateway, job_id: str, kind: str) -> list[dict[str, Any]]:
    with gateway.client() as client:
        text = client.get(f"/jobs/{job_id}/events").text
    frames = [frame.split("\n") for frame in text.split("\n\n") if f"event: {kind}\n" in frame]
    return [json.loads(frame[-1].removeprefix("data: ")) for frame in frames]


def test_the_next_that_can_be_loaded_draws_what_it_would_have_drawn(gateway: Gateway) -> None:
    told = draw(gateway, model="lost").json()
    assert (told["model"], told["requested_model"]) == ("sketch", "lost")
    picture = base64.b64decode(told["data"][0]["b64_json"])
    itself = draw(gateway, model="sketch").json()
    assert (itself["model"], itself["requested_model"]) == ("sketch", "sketch")
    assert (
        from_base64(itself["data"][0]["b64_json"]) == from_base64(told["data"][0]["b64_json"])
    ).all()

    facts = read(picture).facts
    assert (facts["model"], facts["requested_model"]) == ("sketch", "lost")
    assert (facts["size"], facts["sampler"], facts["num_inference_steps"]) == (
        "256x256",
        "ddim",
        "12",
    )

    with gateway.client() as client:
        job = client.get(f"/jobs/{told['job_id']}").json()
        found = client.get("/jobs", params={"model": "sketch", "size": "256x256"}).json()["jobs"]
        again = client.post(f"/jobs/{told['job_id']}/replay").json()
    assert (job["model"], job["requested_model"], job["size"]) == ("sketch", "lost", "256x256")
    assert (job["status"], job["attempt"], job["seed"]) == ("succeeded", 2, 3)
    assert job["id"] in [one["id"] for one in found]
    assert (again["model"], again["requested_model"]) == ("sketch", "lost")
    started = events(gateway, job["id"], "started")
    assert [(one["attempt"], one["model"]) for one in started] == [
        (1, "broken"),  # the folder of `lost` is not there, which needs no worker to see
        (2, "sketch"),
    ]


def test_no_room_for_the_weights_leads_on_too(gateway: Gateway) -> None:
    told = draw(gateway, model="huge", steps=8).json()
    assert (told["model"], told["requested_model"]) == ("sketch", "huge")
    started = events(gateway, told["job_id"], "started")
    assert [one["model"] for one in started] == ["huge", "sketch"]
    drawn = from_base64(told["data"][0]["b64_json"])
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})


def test_a_request_that_no_fallback_can_take_fails_with_the_first_error(gateway: Gateway) -> None:
    answer = draw(gateway, model="lost", size="1024x1024")  # those that take it are gone
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_unavailable")
    assert "Model lost" in answer.json()["error"]["message"]
    with gateway.client() as client:
        job = client.get(f"/jobs/{answer.headers.get('x-easel-job') or newest(client)}").json()
    assert (job["status"], job["requested_model"]) == ("failed", "lost")


def newest(client: httpx.Client) -> str:
    return str(client.get("/jobs").json()["jobs"][0]["id"])


def test_without_a_fallback_it_fails(gateway: Gateway) -> None:
    answer = draw(gateway, model="gone")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_unavailable")


def test_the_picture_that_is_edited_comes_along(gateway: Gateway) -> None:
    before = base64.b64decode(draw(gateway).json()["data"][0]["b64_json"])
    with gateway.client() as client:
        form = {"prompt": RED_CIRCLE, "model": "lost", "strength": "0.4", "seed": "1"}
        told = client.post("/v1/images/edits", data=form, files={"image": before}).json()
    assert told["model"] == "sketch"
    drawn = from_base64(told["data"][0]["b64_json"])
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})


def test_every_door_tells_both_models(gateway: Gateway) -> None:
    plain = draw(gateway, "/generate", model="lost").json()
    vision = draw(gateway, "/v1/generate-image", model="lost").json()
    a1111 = draw(
        gateway, "/sdapi/v1/txt2img", override_settings={"sd_model_checkpoint": "lost"}
    ).json()
    for told in (plain, vision):
        assert (told["model"], told["requested_model"]) == ("sketch", "lost")
    info = json.loads(a1111["info"])
    assert (info["sd_model_name"], info["requested_model"]) == ("sketch", "lost")


# -- auto ------------------------------------------------------------------------------------------

LAB = """
id = "{name}"
family = "fake"
source = "."
tasks = [{tasks}]
defaults = {{ width = 64, height = 64, num_inference_steps = 2, sampler = "euler" }}
limits = {{ max_side = {max_side} }}
"""


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    models = tmp_path_factory.mktemp("cards")
    text = '"text2image"'
    for name, tasks, side in (
        ("usual", text, 128),
        ("early", text, 128),
        ("editor", f'{text}, "image2image"', 128),
        ("large", text, 4096),
    ):
        card = LAB.format(name=name, tasks=tasks, max_side=side)
        (models / f"{name}.toml").write_text(card)
    environment = {
        **fake_settings(),
        "EASEL_MODELS_DIR": str(models),
        "EASEL_DEFAULT_MODEL": "usual",
        "EASEL_PRELOAD": "[]",
        "EASEL_MAX_MODELS": "1",
    }
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


def test_auto_takes_what_is_held_and_can_draw_it(choosing: Gateway) -> None:
    first = draw(choosing, model="auto").json()
    assert (first["model"], first["requested_model"]) == ("usual", "auto")  # nothing is held yet
    draw(choosing, model="editor")
    held = draw(choosing, model="auto").json()
    assert (held["model"], held["requested_model"]) == ("editor", "auto")
    large = draw(choosing, model="auto", size="1024x1024").json()
    assert large["model"] == "large"
    with choosing.client() as client:
        form = {"prompt": "x", "model": "auto"}
        image = {"image": base64.b64decode(first["data"][0]["b64_json"])}
        edited = client.post("/v1/images/edits", data=form, files=image).json()
    assert edited["model"] == "editor"
    facts = read(base64.b64decode(large["data"][0]["b64_json"])).facts
    assert (facts["model"], facts["requested_model"]) == ("large", "auto")


def test_auto_is_refused_as_the_default_model_would(choosing: Gateway) -> None:
    answer = draw(choosing, model="auto", size="9000x9000")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "width")


@pytest.mark.parametrize("path", ["/generate", "/v1/generate-image", "/jobs"])
def test_auto_at_other_doors(choosing: Gateway, path: str) -> None:
    told = draw(choosing, path, model="auto").json()
    assert told["requested_model"] == "auto"
    assert told["model"] in {"usual", "editor", "large"}
