"""The part of A1111's API that Open WebUI and others use, against a real gateway and a real model."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

from app import __version__
from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64, pixels

API = "/sdapi/v1"
SLOW = {"prompt": "slow", "override_settings": {"sd_model_checkpoint": "lab/slow"}}


def post(gateway: Gateway, route: str, body: Any, login: str = "") -> httpx.Response:
    with gateway.client() as client:
        return client.post(f"{API}/{route}", json=body, headers={"authorization": login})


def get(gateway: Gateway, route: str, login: str = "") -> Any:
    with gateway.client() as client:
        answer = client.get(f"{API}/{route}", headers={"authorization": login})
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def drawing(gateway: Gateway, login: str = "", **body: Any) -> Iterator[Future[httpx.Response]]:
    """A txt2img call under way; on leaving, it has been interrupted."""
    with ThreadPoolExecutor() as pool:
        call = pool.submit(post, gateway, "txt2img", {**SLOW, **body}, login)
        try:
            until(lambda: get(gateway, "progress", login)["state"]["sampling_step"])
            yield call
        finally:
            post(gateway, "interrupt", None, login)


def until(wanted: Any, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := wanted():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def picture(colour: str | tuple[int, int, int], side: int = 256) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def right_half(mode: str = "L", side: int = 256) -> str:
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    buffer = io.BytesIO()
    mask.convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


RED_CIRCLE = "a red circle on a white background"


def test_open_webui_verifies_lists_sets_and_draws(gateway: Gateway) -> None:
    """What it sends, in its order, with its header for no login."""
    assert get(gateway, "options", "Basic")["sd_model_checkpoint"] == "sketch"
    models = {model["title"]: model["model_name"] for model in get(gateway, "sd-models", "Basic")}
    assert models == {"sketch": "sketch", "sketch-flux": "sketch-flux"}
    try:
        for title in ("sketch-flux", "sketch"):
            assert post(gateway, "options", {"sd_model_checkpoint": title}).status_code == 200
            assert get(gateway, "options")["sd_model_checkpoint"] == title
        body = {"prompt": RED_CIRCLE, "batch_size": 1, "width": 256, "height": 256}
        answer = post(gateway, "txt2img", {**body, "steps": 9, "negative_prompt": "blue"}, "Basic")
    finally:
        post(gateway, "options", {"sd_model_checkpoint": "sketch"})
    assert answer.status_code == 200
    told = answer.json()
    drawn = from_base64(told["images"][0])
    assert drawn.shape == (256, 256, 3)
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})
    info = json.loads(told["info"])
    assert (info["steps"], info["negative_prompt"]) == (9, "blue")
    assert info["sd_model_name"] == "sketch"


def test_the_checkpoint_is_the_model_of_calls_that_name_none(gateway: Gateway) -> None:
    body = {"prompt": "x", "steps": 1}
    override = {"override_settings": {"sd_model_checkpoint": "sketch"}}
    try:
        post(gateway, "options", {"sd_model_checkpoint": "sketch-flux", "CLIP_stop_at": 2})
        chosen = post(gateway, "txt2img", body).json()
        named = post(gateway, "txt2img", {**body, **override}).json()
        samplers = [sampler["name"] for sampler in get(gateway, "samplers")]
    finally:
        post(gateway, "options", {"sd_model_checkpoint": "sketch"})
    assert json.loads(chosen["info"])["sd_model_name"] == "sketch-flux"
    assert json.loads(named["info"])["sd_model_name"] == "sketch"
    assert samplers == ["Euler", "Heun"]


@pytest.mark.parametrize("name", ["v1-5-pruned.ckpt [e1441589a6]", "dall-e-2", "", None, 7, ["x"]])
def test_an_unknown_checkpoint_does_no_harm(fake_gateway: Gateway, name: object) -> None:
    assert post(fake_gateway, "options", {"sd_model_checkpoint": "lab/slow"}).status_code == 200
    try:
        assert post(fake_gateway, "options", {"sd_model_checkpoint": name}).status_code == 200
        assert get(fake_gateway, "options")["sd_model_checkpoint"] == "lab/slow"
    finally:
        post(fake_gateway, "options", {"sd_model_checkpoint": "quick"})  # an alias
    assert get(fake_gateway, "options")["sd_model_checkpoint"] == "fake"


def test_a_call_that_names_an_unknown_checkpoint_is_refused(fake_gateway: Gateway) -> None:
    for name in ("nothing", 7):
        body = {"prompt": "x", "override_settings": {"sd_model_checkpoint": name}}
        answer = post(fake_gateway, "txt2img", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_batches_have_following_seeds_and_a_text_each(fake_gateway: Gateway) -> None:
    fields = {"negative_prompt": "fog", "seed": 7, "steps": 3, "cfg_scale": 6.5}
    other = {"restore_faces": True, "styles": ["a"], "enable_hr": False, "alwayson_scripts": {}}
    body = {"prompt": "a dog", "batch_size": 2, "n_iter": 2, "sampler_name": "DPM++ 2M Karras"}
    told = post(fake_gateway, "txt2img", {**body, **fields, **other}).json()
    info = json.loads(told["info"])
    assert len(set(told["images"])) == 4
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["seed"], info["prompt"], info["all_prompts"]) == (7, "a dog", ["a dog"] * 4)
    assert (info["batch_size"], info["n_iter"], info["cfg_scale"]) == (2, 2, 6.5)
    assert info["infotexts"][1] == (
        "a dog\nNegative prompt: fog\n"
        "Steps: 3, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 8, Size: 64x64, Model: fake, "
        f"Version: Easel {__version__}"
    )
    assert told["parameters"]["sampler_name"] == "DPM++ 2M Karras"


def test_minus_one_draws_a_seed(fake_gateway: Gateway) -> None:
    drawn = [
        json.loads(post(fake_gateway, "txt2img", {"prompt": "x", "seed": -1}).json()["info"])
        for _ in range(2)
    ]
    assert drawn[0]["seed"] != drawn[1]["seed"]
    assert min(drawn[0]["seed"], drawn[1]["seed"]) >= 0


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({"sampler_name": "Euler a"}, "Euler a"),
        ({"sampler_index": "DDIM"}, "DDIM"),
        ({"sampler_name": "LMS", "sampler_index": "DDIM"}, "LMS"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, "DPM++ 2M Karras"),
        ({"sampler_name": "DPM++ 2M SDE", "scheduler": "karras"}, "DPM++ 2M SDE Karras"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"}, "DPM++ 2M Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "DPM++ 2M"),
        ({"sampler_name": "DDIM", "scheduler": "Karras"}, "DDIM"),
        ({"scheduler": "Karras"}, "Euler Karras"),
        ({}, "Euler"),
    ],
)
def test_samplers_go_by_their_usual_names(
    fake_gateway: Gateway, given: dict[str, Any], used: str
) -> None:
    told = post(fake_gateway, "txt2img", {"prompt": "x", **given}).json()
    assert json.loads(told["info"])["sampler_name"] == used


def test_every_listed_sampler_draws(fake_gateway: Gateway) -> None:
    names = [sampler["name"] for sampler in get(fake_gateway, "samplers")]
    assert {"Euler a", "DPM++ 2M Karras", "DPM++ SDE", "UniPC", "DDIM", "Heun"} <= set(names)
    for name in names:
        told = post(fake_gateway, "txt2img", {"prompt": "x", "sampler_name": name}).json()
        assert json.loads(told["info"])["sampler_name"] == name
    assert [known["label"] for known in get(fake_gateway, "schedulers")] == ["Automatic", "Karras"]
    wrong = post(fake_gateway, "txt2img", {"prompt": "x", "sampler_name": "Magic"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "sampler")


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_img2img_recolours(gateway: Gateway, prefix: str) -> None:
    body = {"prompt": "a blue circle on a yellow background", "denoising_strength": 0.8, "seed": 5}
    circle = post(gateway, "txt2img", {"prompt": RED_CIRCLE, "seed": 1}).json()["images"][0]
    told = post(gateway, "img2img", {**body, "init_images": [prefix + circle]}).json()
    drawn = from_base64(told["images"][0])
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("blue", {"yellow"})
    assert "Denoising strength: 0.8" in json.loads(told["info"])["infotexts"][0]


def test_a_mask_paints_where_it_is_white(gateway: Gateway) -> None:
    body = {"prompt": "a green square on a black background", "denoising_strength": 1, "seed": 5}
    given = {"init_images": [picture((252, 252, 252))], "mask": right_half()}
    told = post(gateway, "img2img", {**body, **given}).json()
    drawn = from_base64(told["images"][0])
    assert colour_at(drawn, 0.1, 0.5) == "white"
    assert colour_at(drawn, 0.97, 0.03) == "black"


def test_without_a_size_img2img_keeps_that_of_its_picture(gateway: Gateway) -> None:
    body = {"prompt": "x", "steps": 2, "init_images": [picture("red", 160)]}
    told = post(gateway, "img2img", body).json()
    assert from_base64(told["images"][0]).shape == (160, 160, 3)
    assert (told["parameters"]["width"], told["parameters"]["height"]) == (160, 160)


TRUNCATED = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 20).decode()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": [picture("red"), picture("red")]}, "init_images"),
        ({"init_images": ["not base64!"]}, "init_images"),
        ({"init_images": ["ü" * 8]}, "init_images"),
        ({"init_images": ["http://127.0.0.1/x.png"]}, "init_images"),
        ({"init_images": [base64.b64encode(b"GIF89a....").decode()]}, "init_images"),
        ({"init_images": [TRUNCATED]}, "init_images"),
        ({"init_images": [7]}, "init_images"),
        ({"init_images": [picture("red")], "mask": "data:image/png;base64,@@@@"}, "mask"),
        ({"init_images": [picture("red")], "mask": TRUNCATED}, "mask"),
        ({"init_images": [picture("red")], "mask": right_half("RGBA")}, "mask"),
        ({"init_images": [picture("red")], "inpainting_mask_invert": 1}, "inpainting_mask_invert"),
        ({"init_images": [picture("red")], "batch_size": 0}, "batch_size"),
    ],
)
def test_bad_pictures_are_400_and_named(
    gateway: Gateway, given: dict[str, Any], param: str
) -> None:
    answer = post(gateway, "img2img", {"prompt": "x", "steps": 2, **given})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert re.match(param, error["param"]), error
    assert error["type"] == "invalid_request_error"


def test_a_picture_may_be_larger_than_other_bodies(gateway: Gateway) -> None:
    noise = Image.effect_noise((1200, 1200), 90)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert len(buffer.getvalue()) > 1_000_000
    body = {"prompt": "x", "init_images": [base64.b64encode(buffer.getvalue()).decode()]}
    answer = post(gateway, "img2img", {**body, "steps": 2, "width": 128, "height": 128})
    assert answer.status_code == 200


def test_progress_grows_and_shows_the_picture_in_the_making(fake_gateway: Gateway) -> None:
    seen = []
    with drawing(fake_gateway, steps=30, batch_size=2) as call:
        while not call.done():
            seen.append(get(fake_gateway, "progress"))
            time.sleep(0.05)
        assert len(call.result().json()["images"]) == 2
    running = [told for told in seen if told["state"]["job_count"]]
    shares = [told["progress"] for told in running]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5 < shares[-1] <= 1
    etas = [told["eta_relative"] for told in running]
    assert etas[0] > etas[-1] >= 0
    steps = [(told["state"]["job_no"], told["state"]["sampling_step"]) for told in running]
    assert steps == sorted(steps)
    assert {number for number, _ in steps} == {0, 1}
    assert {told["state"]["sampling_steps"] for told in running} == {30}
    shown = [told["current_image"] for told in running if told["current_image"]]
    assert len(set(shown)) == 2  # the fake model's pictures differ by image only
    assert from_base64(shown[0]).shape == (64, 64, 3)
    assert all(told["textinfo"] is None for told in seen)


def test_progress_without_a_job_is_nothing(fake_gateway: Gateway) -> None:
    told = get(fake_gateway, "progress")
    assert (told["progress"], told["eta_relative"], told["current_image"]) == (0, 0, None)
    assert (told["state"]["job"], told["state"]["job_count"]) == ("", 0)


def test_progress_leaves_the_picture_out_on_request(fake_gateway: Gateway) -> None:
    with drawing(fake_gateway, steps=400):
        until(lambda: get(fake_gateway, "progress?skip_current_image=false")["current_image"])
        told = get(fake_gateway, "progress?skip_current_image=true")
    assert told["current_image"] is None
    assert told["progress"] > 0


def test_progress_and_interrupt_are_the_callers_own(fake_gateway: Gateway) -> None:
    with drawing(fake_gateway, "Basic YTph", steps=900) as call, fake_gateway.client() as client:
        job = client.post("/jobs", json={"prompt": "x", "model": "lab/slow", "steps": 5}).json()
        for login in ("", "Basic Yjpi"):
            assert get(fake_gateway, "progress", login)["state"]["job_count"] == 0
            assert post(fake_gateway, "interrupt", None, login).status_code == 200
        assert get(fake_gateway, "progress", "Basic YTph")["state"]["job_count"] == 1
        assert not call.done()

        stopped = post(fake_gateway, "interrupt", None, "Basic YTph")
        answer = call.result(timeout=10)
        shown = until(
            lambda: (
                (now := client.get(f"/jobs/{job['id']}").json())["status"]
                not in ("queued", "running")
                and now
            )
        )
    assert (stopped.status_code, stopped.json()) == (200, {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "cancelled")
    assert shown["status"] == "succeeded"


def test_interrupt_takes_waiting_calls_too(fake_gateway: Gateway) -> None:
    with drawing(fake_gateway, steps=900) as call, ThreadPoolExecutor() as pool:
        waiting = pool.submit(post, fake_gateway, "txt2img", {"prompt": "waits"})
        with fake_gateway.client() as client:
            until(lambda: client.get("/jobs").json()["jobs"][0]["prompt"] == "waits")
        told = get(fake_gateway, "progress")
        assert told["state"]["sampling_steps"] == 900  # the one that runs goes first
        post(fake_gateway, "interrupt", None)
        assert [one.result(timeout=10).status_code for one in (call, waiting)] == [422, 422]


def test_a_client_that_leaves_stops_its_job(fake_gateway: Gateway) -> None:
    with (
        httpx.Client(base_url=fake_gateway.url, timeout=1.0) as hasty,
        pytest.raises(httpx.ReadTimeout),
    ):
        hasty.post(f"{API}/txt2img", json={**SLOW, "prompt": "hasty", "steps": 900})
    with fake_gateway.client() as client:
        until(lambda: client.get("/jobs?q=hasty").json()["jobs"][0]["status"] == "cancelled", 5)
    assert get(fake_gateway, "progress")["state"]["job_count"] == 0


def test_pictures_are_png_whatever_is_asked(fake_gateway: Gateway) -> None:
    told = post(fake_gateway, "txt2img", {"prompt": "x", "output_format": "jpeg"}).json()
    data = base64.b64decode(told["images"][0])
    assert data.startswith(b"\x89PNG")
    assert pixels(data).shape == (64, 64, 3)


@pytest.mark.parametrize("route", ["txt2img", "img2img", "options"])
def test_bodies_under_another_content_type_are_415(fake_gateway: Gateway, route: str) -> None:
    with fake_gateway.client() as client:
        answer = client.post(
            f"{API}/{route}", content=b"{}", headers={"content-type": "text/plain"}
        )
    assert answer.status_code == 415
