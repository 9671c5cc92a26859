"""LoRAs over HTTP: a real gateway, a real worker, the bundled model and files made for it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from app.engines import picture_text
from tests import loras
from tests.gateway import Gateway, running_gateway
from tests.hub_mirror import COMMIT, Mirror, mirror_of
from tests.painter import CARDS
from tests.pictures import from_base64, pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of what stock diffusers asks of it

BODY: dict[str, Any] = {
    "prompt": "a red circle on a white background",
    "seed": 7,
    "size": "128x128",
    "steps": 4,
    "preset": "strict",
}
GENERATIONS = "/v1/images/generations"
BOLD = [{"name": "bold", "scale": 0.8}]


@pytest.fixture(scope="module")
def stock() -> Any:
    import diffusers

    source = CARDS["sketch"].source
    return diffusers.StableDiffusionPipeline.from_pretrained(source, dtype=torch.float32)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, stock: Any) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("hub")
    loras.write(folder / "far.safetensors", loras.tensors(stock, seed=11, rank=4))
    with mirror_of({"tests/lora": folder}) as started:
        yield started


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, stock: Any, hub: Mirror) -> Iterator[Gateway]:
    data = tmp_path_factory.mktemp("data")
    folder = data / "loras"
    told = {"modelspec.trigger_phrase": "boldly"}
    loras.write(folder / "bold.safetensors", loras.tensors(stock, seed=2), **told)
    loras.write(folder / "faint.safetensors", loras.tensors(stock, seed=3, text=False))
    wrong = {name: torch.ones(3, 5) for name in loras.tensors(stock)}
    loras.write(folder / "wrong.safetensors", wrong)
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 4)}
    loras.write(folder / "flux.safetensors", flux)
    (folder / "broken.safetensors").write_bytes(b"no weights at all")
    far = {"source": "hub:tests/lora", "file": "far.safetensors", "revision": COMMIT}
    lost = {**far, "file": "lost.safetensors"}
    environment = {
        "EASEL_LORAS": json.dumps({"far": far, "lost": lost}),
        "EASEL_BATCHING": "false",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(data / "hf"),
    }
    with running_gateway(data, environment) as started:
        yield started


@pytest.fixture
def client(house: Gateway) -> Iterator[httpx.Client]:
    with house.client() as opened:
        yield opened


def ask(client: httpx.Client, **given: Any) -> httpx.Response:
    return client.post(GENERATIONS, json={**BODY, **given})


def data_of(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def draw(client: httpx.Client, **given: Any) -> Any:
    return pixels(data_of(ask(client, **given)))


def refused(answer: httpx.Response, status: int, param: str = "loras") -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["param"].split(".")[0] == param, answer.text
    return error


def test_what_there_is(client: httpx.Client) -> None:
    shown = {one["name"]: one for one in client.get("/loras").json()["loras"]}
    assert list(shown) == ["bold", "broken", "faint", "far", "flux", "lost", "wrong"]
    assert shown["bold"]["trigger_words"] == ["boldly"]
    assert {name: one["family"] for name, one in shown.items() if one["family"]} == {
        **dict.fromkeys(("bold", "faint", "wrong"), "unet"),
        "flux": "flux",
    }
    assert shown["bold"]["state"] == "on_disk"
    assert shown["bold"]["bytes"] > 10_000
    assert shown["broken"]["state"] == "unavailable"
    assert shown["far"]["state"] == "not_downloaded"


def test_a_picture_with_them_and_without(client: httpx.Client, stock: Any, house: Gateway) -> None:
    plain = draw(client)
    answer = ask(client, loras=[*BOLD, {"name": "faint", "scale": -0.5}])
    picture = pixels(data_of(answer))
    assert "x-easel-ignored" not in answer.headers
    assert not (picture == plain).all()
    folder = house.log.parent / "loras"
    files = [folder / "bold.safetensors", folder / "faint.safetensors"]
    loras.put(stock, files, [0.8, -0.5])
    try:
        apart = picture.astype(int) - by_hand(stock)
    finally:
        stock.unload_lora_weights()
    assert np.abs(apart).max() <= 1  # another process, with another number of threads
    assert (draw(client) == plain).all()
    assert (draw(client, loras=[{"name": "bold", "scale": 0}]) == plain).all()
    assert (draw(client, loras=[]) == plain).all()
    whole = draw(client, loras=[{"name": "bold"}])
    assert (whole == draw(client, lora={"name": "bold", "scale": 1.0})).all()
    assert not (whole == picture).all()


def by_hand(stock: Any) -> Any:
    from app.engines import samplers

    card = CARDS["sketch"]
    stock.scheduler = samplers.build(card, card.defaults.sampler, stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    given = {"width": 128, "height": 128, "num_inference_steps": 4}
    drawn = stock(
        BODY["prompt"],
        guidance_scale=card.defaults.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(7),
        **given,
    )
    return np.asarray(drawn.images[0]).astype(int)


def with_loras(client: httpx.Client, preset: str, named: list[dict[str, Any]]) -> Any:
    return draw(client, loras=named, preset=preset)


def test_side_by_side_each_is_as_alone(client: httpx.Client) -> None:
    sets: list[list[dict[str, Any]]] = [BOLD, [], [{"name": "faint"}], [*BOLD, {"name": "faint"}]]
    alone = [draw(client, loras=named) for named in sets]
    for preset in ("strict", "exact"):
        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(partial(with_loras, client, preset), sets * 2))
        for one, other in zip(alone * 2, drawn, strict=True):
            assert (one == other).all(), preset


def test_one_that_cannot_be_used_is_a_clear_error(client: httpx.Client, house: Gateway) -> None:
    plain, before = draw(client), house.workers()
    for name in ("nobody", "bold.safetensors"):
        error = refused(ask(client, loras=[{"name": name}]), 404)
        assert error["code"] == "lora_not_found"
        assert error["message"].startswith("This LoRA does not exist here. LoRAs: bold, broken, ")
        assert "nobody" not in error["message"]
    for bad in ("../bold", "/etc/passwd", "a/b", "..", ""):
        refused(ask(client, loras=[{"name": bad}]), 400)
    for one in (
        {"name": "bold", "path": "/x"},
        {"scale": 1},
        {"name": "bold", "scale": 99},
        "bold",
    ):
        refused(ask(client, loras=[one]), 400)
    refused(ask(client, loras=[{"name": "bold"}, {"name": "bold", "scale": 0.5}]), 400)
    refused(ask(client, loras=[{"name": f"n{number}"} for number in range(5)]), 400)
    refused(ask(client, loras=BOLD, lora=[{"name": "faint"}]), 400)
    for name, words in (
        ("broken", "cannot be used"),
        ("flux", "is for models of kind flux"),
        ("wrong", "does not fit model sketch"),
    ):
        assert words in refused(ask(client, loras=[{"name": name}]), 400)["message"]
    assert (draw(client) == plain).all()
    assert house.workers() == before
    assert not (draw(client, loras=BOLD) == plain).all()


def test_a_file_may_come_and_go(client: httpx.Client, house: Gateway) -> None:
    folder = house.log.parent / "loras"
    refused(ask(client, loras=[{"name": "late"}]), 404)
    (folder / "late.safetensors").write_bytes((folder / "bold.safetensors").read_bytes())
    late = [{"name": "late", "scale": 0.8}]
    assert (draw(client, loras=late) == draw(client, loras=BOLD)).all()
    (folder / "late.safetensors").unlink()
    refused(ask(client, loras=late), 404)


def test_a_job_shows_them_and_is_drawn_again_with_them(client: httpx.Client) -> None:
    job = client.post("/jobs", json={**BODY, "loras": BOLD}).json()
    assert job["loras"] == BOLD
    first = finished(client, job["id"])
    again = finished(client, client.post(f"/jobs/{job['id']}/replay").json()["id"])
    assert again["loras"] == BOLD
    one, other = (client.get(f"/images/{shown['images'][0]}").content for shown in (first, again))
    assert (pixels(one) == pixels(other)).all()
    assert (pixels(one) == draw(client, loras=BOLD)).all()
    told = picture_text.read(one).facts
    text = Image.open(io.BytesIO(one)).info["parameters"]
    assert told["loras"] == "bold:0.8"
    assert "<lora:bold:0.8>\n" in text
    assert f'Lora hashes: "{told["lora_hashes"]}"' in text


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    with client.stream("GET", f"/jobs/{job_id}/events") as events:
        for _ in events.iter_lines():
            pass
    shown: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    assert shown["status"] == "succeeded", shown
    return shown


def test_diffugens_routes(client: httpx.Client) -> None:
    body = {**BODY, "width": 128, "height": 128, "loras": BOLD}
    answer = client.post("/generate/stable", json=body).json()
    assert (from_base64(answer["images"][0]["b64_json"]) == draw(client, loras=BOLD)).all()


def test_in_a_form_they_are_json(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), "white").save(buffer, "PNG")
    form = {"prompt": BODY["prompt"], "seed": "7", "steps": "4", "preset": "strict"}

    def edit(**more: str) -> httpx.Response:
        files = {"image": buffer.getvalue()}
        return client.post("/v1/images/edits", data={**form, **more}, files=files)

    plain, changed = edit(), edit(loras=json.dumps(BOLD))
    assert not (pixels(data_of(plain)) == pixels(data_of(changed))).all()
    one = json.dumps(BOLD[0])
    assert (pixels(data_of(edit(lora=one))) == pixels(data_of(changed))).all()
    for bad in ("bold", "[3]", "{}", "[" * 10_000):
        refused(edit(loras=bad), 400)


def test_in_a1111s_prompt(client: httpx.Client) -> None:
    body = {**BODY, "width": 128, "height": 128}

    def txt2img(prompt: str, **given: Any) -> httpx.Response:
        return client.post("/sdapi/v1/txt2img", json={**body, **given, "prompt": prompt})

    tagged = txt2img(f"{BODY['prompt']} <lora:bold:0.8><lora:nobody:1>")
    assert tagged.status_code == 200, tagged.text
    picture = from_base64(tagged.json()["images"][0])
    assert (picture == draw(client, loras=BOLD)).all()
    info = json.loads(tagged.json()["info"])
    assert info["prompt"] == BODY["prompt"]
    assert info["infotexts"][0].startswith(f"{BODY['prompt']} <lora:bold:0.8>\nSteps: 4, ")
    listed = [one["name"] for one in client.get("/sdapi/v1/loras").json()]
    assert {"bold", "far"} <= set(listed)
    refused(txt2img("x <lora:bold:much>"), 400, "prompt")
    refused(txt2img("x <lora:flux:1>"), 400)
    assert (from_base64(txt2img(BODY["prompt"]).json()["images"][0]) == draw(client)).all()


def test_only_there_a_prompt_names_them(client: httpx.Client) -> None:
    prompt = f"{BODY['prompt']} <lora:bold:0.8>"
    job = client.post("/jobs", json={**BODY, "prompt": prompt}).json()
    assert (job["prompt"], job["loras"]) == (prompt, [])


def test_one_of_the_hub_is_fetched_by_the_first_job(client: httpx.Client, hub: Mirror) -> None:
    plain = draw(client)
    far = [{"name": "far"}]
    hub.rate = 200_000
    job = client.post("/jobs", json={**BODY, "loras": far}).json()
    with client.stream("GET", f"/jobs/{job['id']}/events") as events:
        told = "".join(events.iter_text())
    assert "Downloading loras/far" in told
    assert not (draw(client, loras=far) == plain).all()
    assert hub.ranges("far.safetensors") == [None]
    shown = {one["name"]: one for one in client.get("/loras").json()["loras"]}
    assert (shown["far"]["state"], shown["far"]["family"]) == ("on_disk", "unet")
    assert client.post("/loras/far/pull").json()["state"] == "on_disk"
    refused(client.post("/loras/nobody/pull"), 404)


def test_one_that_the_hub_lacks_fails_its_job_alone(client: httpx.Client) -> None:
    answer = ask(client, loras=[{"name": "lost"}])
    assert answer.status_code == 500, answer.text
    assert "has no such file" in answer.json()["error"]["message"]
    draw(client)


def test_the_shell_lists_them(house: Gateway) -> None:
    import os

    given = {"EASEL_DATA_DIR": str(house.log.parent), "EASEL_LORAS": "{}"}
    listed = subprocess.run(
        [sys.executable, "-m", "app", "loras", "list", "--json"],
        env={**os.environ, **given},
        capture_output=True,
        check=True,
        text=True,
    )
    shown = {one["name"]: one for one in json.loads(listed.stdout)}
    assert shown["bold"]["trigger_words"] == ["boldly"]
    assert shown["broken"]["state"] == "unavailable"
