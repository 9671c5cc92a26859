"""Single files and half-precision folders through a real gateway and a real worker; broken ones too."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import BUNDLED
from tests import zoo
from tests.checkpoints import as_gguf, checkpoint
from tests.gateway import Gateway, running_gateway
from tests.hub_mirror import COMMIT, Mirror, mirror_of
from tests.pictures import colour_at, from_base64

FLUX = BUNDLED / "sketch-flux"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"


def card(folder: Path, name: str, family: str, **given: str) -> None:
    sampler = "euler" if family == "flux" else "ddim"
    fields = {"id": name, "family": family, **given}
    lines = [f'{key} = "{value}"' for key, value in fields.items()]
    if family == "flux":
        lines.append('tasks = ["text2image", "image2image", "inpaint"]')
    lines += ["[defaults]", "width = 128", "height = 128", "num_inference_steps = 2"]
    lines += [f'sampler = "{sampler}"', "guidance_scale = 0.0", "max_sequence_length = 16"]
    (folder / f"{name}.toml").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("hub")
    quantised = folder / "quantised"
    quantised.mkdir()
    as_gguf(FLUX / WEIGHTS, quantised / "flux-Q8_0.gguf")
    (quantised / "flux-Q2_K.gguf").write_bytes(b"another one")
    with mirror_of({"tests/quantised": quantised, "tests/flux": FLUX}) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, hub: Mirror) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("cards")
    sd = folder / "sd"
    zoo.forget()
    zoo.pipeline("StableDiffusionPipeline").save_pretrained(sd)
    file = checkpoint(sd, folder / "sd.safetensors")
    card(folder, "folder", "stable_diffusion", source="sd")
    card(folder, "checkpoint", "stable_diffusion", source="sd.safetensors", base="sd")
    half = shutil.copytree(BUNDLED / "sketch", folder / "half")
    for part in ("unet", "vae"):
        whole = half / part / "diffusion_pytorch_model.safetensors"
        whole.rename(whole.with_name(HALF))
    encoder = half / "text_encoder" / "model.safetensors"
    encoder.rename(encoder.with_name("model.fp16.safetensors"))
    card(folder, "half", "stable_diffusion", source="half")
    card(folder, "whole", "stable_diffusion", source=str(BUNDLED / "sketch"))
    (folder / "short.gguf").write_bytes(
        (hub.folders["tests/quantised"] / "flux-Q8_0.gguf").read_bytes()[:-100_000]
    )
    card(folder, "short", "flux", source="short.gguf", base=str(FLUX))
    (folder / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    card(folder, "cut", "stable_diffusion", source="cut.safetensors", base="sd")
    card(
        folder,
        "quantised",
        "flux",
        source="hub:tests/quantised",
        revision=COMMIT,
        file="flux-Q8_0.gguf",
        base="hub:tests/flux",
        base_revision="main",
    )
    environment = {
        "EASEL_MODELS_DIR": str(folder),
        "EASEL_DEFAULT_MODEL": "whole",
        "EASEL_PRELOAD": "[]",
        "EASEL_BATCHING": "false",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
    }
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


def draw(gateway: Gateway, model: str, status: int = 200, **given: Any) -> Any:
    body = {"prompt": "a red circle", "model": model, "seed": 7, "size": "128x128", **given}
    with gateway.client() as client:
        answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def pixels(answer: Any) -> bytes:
    return bytes(from_base64(answer["data"][0]["b64_json"]).tobytes())


def state(gateway: Gateway, model: str) -> dict[str, Any]:
    with gateway.client() as client:
        told: dict[str, Any] = client.get(f"/models/{model}/status").json()
    return told


@pytest.mark.parametrize(("one", "other"), [("checkpoint", "folder"), ("half", "whole")])
def test_the_same_weights_draw_the_same_picture(gateway: Gateway, one: str, other: str) -> None:
    assert pixels(draw(gateway, one)) == pixels(draw(gateway, other))


def test_a_quantised_transformer_comes_with_no_more_than_it_needs(
    gateway: Gateway, hub: Mirror
) -> None:
    drawn = draw(gateway, "quantised", num_inference_steps=8, size="256x256")
    assert colour_at(from_base64(drawn["data"][0]["b64_json"]), 0.5, 0.5) == "red"
    asked = {one.name for one in hub.asked}
    assert "flux-Q8_0.gguf" in asked
    assert "text_encoder_2/model.safetensors" in asked
    assert "transformer/config.json" in asked
    assert not asked & {WEIGHTS, "flux-Q2_K.gguf"}
    told = state(gateway, "quantised")
    assert told["state"] == "on_disk"
    assert {"flux-Q8_0.gguf", "model_index.json"} <= {file["name"] for file in told["files"]}
    with gateway.client() as client:
        edited = client.post(
            "/sdapi/v1/img2img",
            json={
                "prompt": "a red circle",
                "init_images": [drawn["data"][0]["b64_json"]],
                "override_settings": {"sd_model_checkpoint": "quantised"},
                "steps": 4,
            },
        )
    assert edited.status_code == 200, edited.text


def test_broken_files_are_told_and_others_go_on(gateway: Gateway) -> None:
    told = draw(gateway, "cut", status=500)["error"]
    assert told["code"] == "model_unavailable"
    assert "cut short" in told["message"]
    assert state(gateway, "cut")["state"] == "unavailable"
    began = time.monotonic()
    told = draw(gateway, "short", status=500)["error"]  # what its beginning does not tell
    assert told["code"] == "model_unavailable"
    assert "/" not in told["message"]
    assert state(gateway, "short")["state"] == "unavailable"
    assert draw(gateway, "short", status=500)["error"]["code"] == "model_unavailable"
    assert time.monotonic() - began < 60
    with gateway.client() as client:
        listed = {one["id"] for one in client.get("/v1/models").json()["data"]}
    assert not listed & {"cut", "short"}
    assert draw(gateway, "whole")["data"]
