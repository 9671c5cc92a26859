"""Every kind of model that there is, drawn by a real gateway from one card each.

The folders hold the real classes with tiny random weights. Promised, for each pipeline and task: a
picture of the size that was asked for, every step told, a preview on the way, and the picture is bit
for bit the stock pipeline's.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from app.domain.pipelines import PIPELINES
from app.engines.image_codec import Pixels
from tests.gateway import Gateway, running_gateway
from tests.kinds import (
    KINDS,
    MASK,
    PICTURE,
    PROMPT,
    SIDE,
    card_of,
    drawn_by_hand,
    save,
    strength_of,
    wish,
)
from tests.pictures import from_base64

pytestmark = pytest.mark.filterwarnings("ignore")

TURBO = """
[scheduler]
timestep_spacing = "trailing"
"""
SCHNELL = 'ignores = ["guidance_scale"]\n'
CASES = [(name, task) for name, kind in KINDS.items() for task in kind.tasks]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def gateway(house: Path) -> Iterator[Gateway]:
    for part in ("cards", "data"):
        (house / part).mkdir()
    for name, kind in KINDS.items():
        save(kind, house / name)
        (house / "cards" / f"{name}.toml").write_text(card_of(name, kind, house / name))
    turbo = card_of("turbo", replace(KINDS["sd"], sampler="euler"), house / "sd") + TURBO
    (house / "cards" / "turbo.toml").write_text(turbo)
    schnell = SCHNELL + card_of("schnell", KINDS["flux"], house / "flux")
    (house / "cards" / "schnell.toml").write_text(schnell)
    environment = {
        "EASEL_MODELS_DIR": str(house / "cards"),
        "EASEL_DEFAULT_MODEL": "sd",
        "EASEL_PRELOAD": '["fill"]',  # its warm-up has no words alone to draw from
        "EASEL_DEVICES": '["cpu"]',
    }
    with running_gateway(house / "data", environment) as started:
        yield started


def file_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def ask(gateway: Gateway, task: str, **fields: Any) -> httpx.Response:
    with gateway.client() as client:
        if task == "text2image":
            return client.post("/v1/images/generations", json=fields)
        files = {"image": file_of(PICTURE)}
        if task == "inpaint":
            hole = Image.new("RGBA", PICTURE.size, "black")
            hole.putalpha(Image.eval(MASK, lambda level: 255 - level))
            files["mask"] = file_of(hole)
        return client.post("/v1/images/edits", data=fields, files=files)


def steps_told(gateway: Gateway, job: str) -> list[int]:
    with gateway.client() as client:
        text = client.get(f"/jobs/{job}/events").text
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    return [one["step"] for one in told if one.get("phase") == "generating" and one["step"]]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_model_draws_what_its_stock_pipeline_draws(
    gateway: Gateway, house: Path, name: str, task: str
) -> None:
    kind = KINDS[name]
    answer = ask(
        gateway,
        task,
        model=name,
        size=f"{SIDE}x{SIDE}",
        seed=7,
        **wish(kind, task),
        **strength_of(kind, task),
    )
    assert answer.status_code == 200, answer.text
    picture = from_base64(answer.json()["data"][0]["b64_json"])
    assert picture.shape == (SIDE, SIDE, 3)
    kept = {"all": 5, "down": 2, "up": 3}[PIPELINES[kind.pipeline].tasks[task]]  # type: ignore[index]
    total = 3 if task == "text2image" else kept
    assert steps_told(gateway, answer.headers["x-easel-job"]) == list(range(1, total + 1))
    assert picture.std() > 5
    assert np.array_equal(picture, drawn_by_hand(house, name, task))


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if "text2image" in kind.tasks]
)
def test_unfinished_pictures_are_shown_of_every_kind(gateway: Gateway, name: str) -> None:
    body = {"model": name, "prompt": PROMPT, "stream": True, "partial_images": 1, "seed": 7}
    with gateway.client() as client:
        text = client.post("/v1/images/generations", json=body).text
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [one["type"].rpartition(".")[2] for one in told]
    assert kinds == ["partial_image", "completed"], text[:500]
    shown = from_base64(told[0]["b64_json"])
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown.std() > 1


@torch.inference_mode()
def test_a_second_card_on_a_folder_may_ask_for_another_noise_schedule(
    gateway: Gateway, house: Path
) -> None:
    body = {"model": "turbo", "prompt": PROMPT, "seed": 7, "steps": 1, "guidance_scale": 0.0}
    answer = ask(gateway, "text2image", **body)
    picture = from_base64(answer.json()["data"][0]["b64_json"])
    stock = StableDiffusionPipeline.from_pretrained(house / "sd", dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)

    def by_hand(**schedule: str) -> Pixels:
        stock.scheduler = EulerDiscreteScheduler.from_config(stock.scheduler.config, **schedule)
        given: dict[str, Any] = {"width": SIDE, "height": SIDE, "num_inference_steps": 1}
        chance = torch.Generator("cpu").manual_seed(7)
        drawn = stock(prompt=PROMPT, guidance_scale=0.0, generator=chance, **given)
        return np.asarray(drawn.images[0])

    assert not np.array_equal(picture, by_hand())
    assert np.array_equal(picture, by_hand(timestep_spacing="trailing"))


IDLE: list[tuple[str, str, dict[str, Any], str]] = [
    ("fill", "inpaint", {"negative_prompt": "hens"}, "negative_prompt"),
    (
        "klein",
        "text2image",
        {"negative_prompt": "hens", "true_cfg_scale": 3.0},
        "negative_prompt, true_cfg_scale",
    ),
    ("flux", "text2image", {"negative_prompt": "hens"}, "negative_prompt"),
    ("flux", "text2image", {"negative_prompt": "hens", "true_cfg_scale": 2.0}, ""),
    ("sd", "text2image", {"negative_prompt": "hens", "cfg_scale": 1.0}, "negative_prompt"),
    ("sd", "text2image", {"negative_prompt": "hens", "cfg_scale": 3.0}, ""),
    ("z-image", "text2image", {"negative_prompt": "hens", "cfg_scale": 0.5}, ""),
    ("qwen", "text2image", {"guidance_scale": 3.0}, "guidance_scale"),
    ("schnell", "text2image", {"guidance_scale": 3.0}, "guidance_scale"),
    ("kontext", "image2image", {"strength": 0.5}, "strength"),
]


@pytest.mark.parametrize(("name", "task", "given", "idle"), IDLE)
def test_fields_that_do_nothing_are_told(
    gateway: Gateway, name: str, task: str, given: dict[str, Any], idle: str
) -> None:
    answer = ask(gateway, task, model=name, prompt=PROMPT, steps=2, **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-easel-ignored", "") == idle


def test_a_negative_prompt_that_the_model_has_not_is_not_told_as_drawn(gateway: Gateway) -> None:
    answer = ask(gateway, "inpaint", model="fill", prompt=PROMPT, steps=2, negative_prompt="hens")
    with gateway.client() as client:
        job = client.get(f"/jobs/{answer.headers['x-easel-job']}").json()
        models = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert job["negative_prompt"] == ""
    assert not models["fill"]["negative_prompt"]
    assert models["flux"]["negative_prompt"]
    assert models["schnell"]["ignores"] == ["guidance_scale"]
    assert models["fill"]["pipeline"] == "FluxFillPipeline"
