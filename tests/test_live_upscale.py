"""Enlarging over HTTP, at a real gateway: as a job like any other, and behind what was just drawn."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.engines.picture_text import read
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.networks import write_network
from tests.pictures import colour_at, corners, from_base64, pixels

PATH = "/v1/images/upscale"


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Fake models on a CPU, and two networks in the data folder."""
    data = tmp_path_factory.mktemp("data")
    write_network(data / "upscalers" / "four.safetensors")
    write_network(data / "upscalers" / "two.safetensors", channels=12)
    environment = {**fake_settings(), "EASEL_DEVICES": '["cpu"]', "EASEL_PRELOAD": "[]"}
    with running_gateway(data, environment) as started:
        yield started


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def send(gateway: Gateway, image: bytes, **fields: str) -> httpx.Response:
    with gateway.client() as client:
        return client.post(PATH, data=fields, files={"image": image})


def lanczos(image: bytes, scale: int) -> Any:
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    size = (opened.width * scale, opened.height * scale)
    return np.asarray(opened.resize(size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_form_and_json_are_pillows_lanczos(enlarging: Gateway, scale: int) -> None:
    image = png(60, 40)
    form = send(enlarging, image, scale=str(scale)).json()
    with enlarging.client() as client:
        encoded = base64.b64encode(image).decode()
        plain = client.post(PATH, json={"image": encoded, "upscale": scale}).json()
    for told in (form, plain):
        assert (from_base64(told["data"][0]["b64_json"]) == lanczos(image, scale)).all()
        assert told["size"] == f"{60 * scale}x{40 * scale}"
        assert (told["model"], told["requested_model"]) == ("lanczos", "lanczos")


def test_it_is_a_job_like_any_other(enlarging: Gateway) -> None:
    image = png(250, 200)
    answer = send(enlarging, image, scale="4", model="four", output_format="webp")
    told = answer.json()
    assert answer.status_code == 200, told
    with enlarging.client() as client:
        job = client.get(f"/jobs/{told['job_id']}").json()
        events = client.get(f"/jobs/{told['job_id']}/events").text
        stored = client.get(f"/images/{job['images'][0]}")
        small = client.get(f"/images/{job['images'][0]}/thumbnail").content
        again = client.post(f"/jobs/{told['job_id']}/replay").json()
        assert "event: succeeded" in client.get(f"/jobs/{again['id']}/events").text
        again = client.get(f"/jobs/{again['id']}").json()
        twin = client.get(f"/images/{again['images'][0]}").content
    assert answer.headers["x-easel-job"] == job["id"]
    assert (job["status"], job["model"], job["size"]) == ("succeeded", "four", "1000x800")
    assert job["progress"] == 100.0
    assert '"message":"Generating step 3/4"' in events  # 2 x 2 tiles
    assert stored.headers["content-type"] == "image/webp"
    assert stored.content == base64.b64decode(told["data"][0]["b64_json"]) == twin
    assert max(pixels(small).shape) < 300
    assert read(stored.content).facts == {"upscaler": "four", "upscale": "4"}


def test_a_link_can_be_had(enlarging: Gateway) -> None:
    told = send(enlarging, png(20, 20), response_format="url").json()
    assert pixels(httpx.get(told["data"][0]["url"]).content).shape == (40, 40, 3)


def test_upscalers_are_listed_and_are_no_models(enlarging: Gateway) -> None:
    with enlarging.client() as client:
        told = client.get("/v1/images/upscalers").json()["upscalers"]
        models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert {one["id"]: one["scales"] for one in told} == {
        "lanczos": [2, 4],
        "four": [2, 4],
        "two": [2],
    }
    assert not {"lanczos", "four", "two"} & set(models)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"scale": "3"}, 400, "upscale"),
        ({"scale": "0"}, 400, "upscale"),
        ({"scale": "x"}, 400, "scale"),
        ({"scale": "4", "model": "two"}, 400, "upscale"),
        ({"scale": "2", "upscale": "4"}, 400, "upscale"),
        ({"model": "fake"}, 404, "model"),
        ({"output_format": "gif"}, 400, "output_format"),
        ({"output_compression": "101"}, 400, "output_compression"),
    ],
)
def test_what_cannot_be_done_is_refused(
    enlarging: Gateway, fields: dict[str, str], status: int, param: str
) -> None:
    answer = send(enlarging, png(16, 16), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def bomb(side: int) -> bytes:
    """A picture of one colour: few bytes, many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("side", "scale", "param"), [(3000, "4", "upscale"), (9000, "2", "image")])
def test_bombs_are_refused_by_their_header(
    enlarging: Gateway, side: int, scale: str, param: str
) -> None:
    answer = send(enlarging, bomb(side), scale=scale)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_is_no_picture_is_refused(enlarging: Gateway) -> None:
    with enlarging.client() as client:
        for answer in (
            send(enlarging, b"no picture"),
            send(enlarging, b"\x89PNG\r\n\x1a\n" + b"x" * 50),
            client.post(PATH, json={"image": "####"}),
            client.post(PATH, json={}),
        ):
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
        assert client.post(PATH, json=["x"]).status_code == 400
        assert (
            client.post(PATH, content=b"{}", headers={"content-type": "text/plain"}).status_code
            == 415
        )


def test_a_client_that_leaves_stops_it(enlarging: Gateway) -> None:
    with (
        httpx.Client(base_url=enlarging.url, timeout=1.5) as hasty,
        pytest.raises(httpx.ReadTimeout),
    ):
        data = {"scale": "4", "model": "four"}
        hasty.post(PATH, data=data, files={"image": png(2000, 2000)})
    with enlarging.client() as client:
        deadline = time.monotonic() + 20
        while (job := client.get("/jobs").json()["jobs"][0])["status"] != "cancelled":
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
    assert job["size"] == "8000x8000"


# -- behind what was just drawn --------------------------------------------------------------------


def test_a_drawn_picture_is_enlarged_and_tells_all(enlarging: Gateway) -> None:
    body = {"prompt": "x", "model": "fake", "n": 2, "seed": 5, "output_format": "jpeg"}
    with enlarging.client() as client:
        told = client.post(
            "/v1/images/generations", json={**body, "upscale": 4, "upscaler": "four"}
        ).json()
        job = client.get(f"/jobs/{told['job_id']}").json()
    pictures = [base64.b64decode(one["b64_json"]) for one in told["data"]]
    assert (told["size"], told["model"], job["size"]) == ("256x256", "fake", "64x64")
    assert [one["seed"] for one in told["data"]] == [5, 6]
    for number, picture in enumerate(pictures):
        facts = read(picture).facts
        assert pixels(picture).shape == (256, 256, 3)
        assert picture.startswith(b"\xff\xd8")
        assert (facts["upscaler"], facts["upscale"], facts["size"]) == ("four", "4", "64x64")
        assert (facts["prompt"], facts["seed"]) == ("x", str(5 + number))


@pytest.mark.parametrize("path", ["/generate", "/v1/generate-image", "/sdapi/v1/txt2img"])
def test_every_door_does_it(enlarging: Gateway, path: str) -> None:
    with enlarging.client() as client:
        told = client.post(path, json={"prompt": "x", "model": "fake", "upscale": 2}).json()
    encoded = told.get("image_bytes_b64") or told["images"][0]
    encoded = encoded if isinstance(encoded, str) else encoded["b64_json"]
    assert from_base64(encoded).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"upscale": 3}, "upscale"), ({"upscale": 2, "upscaler": "5"}, "upscaler")],
)
def test_what_cannot_be_is_refused_before_it_is_drawn(
    enlarging: Gateway, fields: dict[str, Any], param: str
) -> None:
    with enlarging.client() as client:
        answer = client.post("/v1/images/generations", json={"prompt": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_real_model_draws_what_was_asked_for_twice_as_large(gateway: Gateway) -> None:
    body = {"prompt": "a red circle on a white background", "seed": 3}
    with gateway.client() as client:
        small = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        told = client.post("/v1/images/generations", json={**body, "upscale": 2}).json()
    drawn = from_base64(told["data"][0]["b64_json"])
    assert (drawn == lanczos(base64.b64decode(small), 2)).all()
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})
    facts = read(base64.b64decode(told["data"][0]["b64_json"])).facts
    assert (facts["upscaler"], facts["upscale"]) == ("lanczos", "2")
