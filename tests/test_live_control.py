"""Drawing under control networks, at a real gateway with real classes of tiny random weights.

Promised: a picture under control is, bit for bit, that of diffusers' own pipeline for it; one without
is what it would be anyway, whoever draws beside it; a network that cannot be used takes nothing along.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.engines.image_codec import Pixels
from app.engines.picture_text import read
from tests.control_house import (
    CONTROL,
    OTHER,
    SEED,
    STOCK,
    add_card,
    asked,
    build,
    by_hand,
    encoded,
    file_of,
    noise,
)
from tests.gateway import Gateway, running_gateway
from tests.kinds import MASK, PICTURE, PROMPT, SIDE
from tests.pictures import from_base64

pytestmark = pytest.mark.filterwarnings("ignore")

PATH = "/v1/images/generations"
CASES = [(name, task) for name, (_, tasks) in STOCK.items() for task in tasks]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def gateway(house: Path) -> Iterator[Gateway]:
    environment = build(house)
    for name in ("short", "torn", "other"):
        shutil.copytree(house / "networks" / "canny", house / "networks" / name)
        add_card(house, name, "StableDiffusionPipeline")
    weights = house / "networks" / "short" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = house / "networks" / "torn" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "conditioning_channels": 5}))
    config = house / "networks" / "other" / "config.json"
    config.write_text(json.dumps({**told, "_class_name": "FluxControlNetModel"}))
    with running_gateway(house / "data", environment) as started:
        yield started


def under(model: str, picture: Image.Image | None = CONTROL, **more: Any) -> dict[str, Any]:
    return {"model": model, **({"image": encoded(picture)} if picture else {}), **more}


def ask(
    gateway: Gateway, task: str = "text2image", path: str = PATH, **fields: Any
) -> httpx.Response:
    fields = {"model": "sd", "seed": SEED, "size": f"{SIDE}x{SIDE}", **fields}
    with gateway.client() as client:
        if task == "text2image":
            return client.post(path, json={"prompt": PROMPT, **fields})
        files = {"image": file_of(PICTURE)}
        if task == "inpaint":
            hole = Image.new("RGBA", PICTURE.size, "black")
            hole.putalpha(Image.eval(MASK, lambda level: 255 - level))
            files["mask"] = file_of(hole)
        if "control_image" in fields:
            files["control_image"] = fields.pop("control_image")
        if isinstance(fields.get("control"), dict):
            fields["control"] = json.dumps(fields["control"])
        return client.post("/v1/images/edits", data={"prompt": PROMPT, **fields}, files=files)


def drawn(answer: httpx.Response) -> Pixels:
    assert answer.status_code == 200, answer.text
    return from_base64(answer.json()["data"][0]["b64_json"])


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_picture_under_control_is_the_stock_pipelines(
    gateway: Gateway, house: Path, name: str, task: str
) -> None:
    own, given = STOCK[name][0], asked(name, task)
    picture = drawn(ask(gateway, task, model=name, control=under(own), **given))
    plain = drawn(ask(gateway, task, model=name, **given))
    assert picture.shape == (SIDE, SIDE, 3)
    assert np.array_equal(picture, by_hand(house, name, task, CONTROL))
    assert not np.array_equal(picture, plain)


def test_how_much_it_counts_and_when(gateway: Gateway, house: Path) -> None:
    how: dict[str, Any] = {
        "controlnet_conditioning_scale": 0.4,
        "control_guidance_start": 0.3,
        "control_guidance_end": 0.9,
    }
    given = asked("sd", "text2image")
    picture = drawn(ask(gateway, control=under("canny", **how), **given))
    assert np.array_equal(picture, by_hand(house, "sd", "text2image", CONTROL, **how))
    assert not np.array_equal(picture, by_hand(house, "sd", "text2image", CONTROL))


@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_what_does_not_count_changes_nothing(gateway: Gateway, name: str, task: str) -> None:
    given, own = asked(name, task), STOCK[name][0]
    nothing = under(own, controlnet_conditioning_scale=0.0)
    still = drawn(ask(gateway, task, model=name, control=nothing, **given))
    assert np.array_equal(still, drawn(ask(gateway, task, model=name, **given)))


def test_pictures_side_by_side_do_not_see_each_others_control(gateway: Gateway) -> None:
    wishes: list[dict[str, Any]] = [
        {"control": under("canny", CONTROL)},
        {"control": under("canny", OTHER)},
        {"control": under("depth", CONTROL)},
        {},
    ]
    given = {**asked("sd", "text2image"), "num_inference_steps": 20}
    alone = [drawn(ask(gateway, **given, **wish)) for wish in wishes]
    assert len({picture.tobytes() for picture in alone}) == 4
    with ThreadPoolExecutor(8) as threads:
        both = list(threads.map(lambda wish: drawn(ask(gateway, **given, **wish)), wishes * 2))
    for picture, before in zip(both, alone * 2, strict=True):
        # Twins may share steps, which rounds.
        assert np.abs(picture.astype(int) - before.astype(int)).max() <= 1


def test_strict_pictures_side_by_side_are_bit_for_bit_what_they_are_alone(gateway: Gateway) -> None:
    wishes: list[dict[str, Any]] = [{"control": under("canny", CONTROL)}, {}]
    given = {**asked("sd", "text2image"), "num_inference_steps": 20, "preset": "strict"}
    alone = [drawn(ask(gateway, **given, **wish)) for wish in wishes]
    with ThreadPoolExecutor(4) as threads:
        both = list(threads.map(lambda wish: drawn(ask(gateway, **given, **wish)), wishes * 2))
    for picture, before in zip(both, alone * 2, strict=True):
        assert np.array_equal(picture, before)


def test_a_control_picture_is_brought_to_the_size_of_what_is_drawn(
    gateway: Gateway, house: Path
) -> None:
    large = noise(1, 3 * SIDE)
    small = large.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture = drawn(ask(gateway, control=under("canny", large), **asked("sd", "text2image")))
    assert np.array_equal(picture, by_hand(house, "sd", "text2image", small))


def test_without_a_size_the_control_picture_tells_it(gateway: Gateway) -> None:
    wide = CONTROL.resize((96, 48))
    told = ask(gateway, size="auto", control=under("canny", wide), num_inference_steps=2).json()
    assert told["size"] == "96x48"


# -- the ways it comes in --------------------------------------------------------------------------


def test_a_form_may_hold_it_in_three_ways(gateway: Gateway) -> None:
    given = asked("sd", "image2image")
    as_json = drawn(ask(gateway, "image2image", control=under("canny"), **given))
    as_file = ask(
        gateway, "image2image", control={"model": "canny"}, control_image=file_of(CONTROL), **given
    )
    fields: dict[str, Any] = {
        "control[model]": "canny",
        "control[image]": encoded(CONTROL),
        "control[controlnet_conditioning_scale]": "1.0",
    }
    one_by_one = ask(gateway, "image2image", **fields, **given)
    assert np.array_equal(as_json, drawn(as_file))
    assert np.array_equal(as_json, drawn(one_by_one))


def test_other_doors_take_it(gateway: Gateway) -> None:
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}
    given |= {"width": SIDE, "height": SIDE}
    wanted = drawn(ask(gateway, control=under("canny"), **given))
    unit = {"enabled": True, "module": "none", "model": "canny", "image": encoded(CONTROL)}
    scripts = {"ControlNet": {"args": [{**unit, "weight": 1, "guidance_end": 1.0}]}}
    body = {"prompt": PROMPT, "model": "sd", "seed": SEED, **given}
    with gateway.client() as client:
        web_ui = client.post("/sdapi/v1/txt2img", json={**body, "alwayson_scripts": scripts}).json()
        diffugen = client.post("/generate", json={**body, "control": under("canny")}).json()
        text = client.post(f"{PATH}/stream", json={**body, "control": under("canny")}).text
    assert np.array_equal(from_base64(web_ui["images"][0]), wanted)
    assert np.array_equal(from_base64(diffugen["images"][0]["b64_json"]), wanted)
    done = next(frame for frame in text.split("\n\n") if frame.startswith("event: done"))
    picture = json.loads(done.partition("data: ")[2])["data"][0]["b64_json"]
    assert np.array_equal(from_base64(picture), wanted)


def test_a_picture_tells_of_its_control(gateway: Gateway) -> None:
    how = under("canny", controlnet_conditioning_scale=0.5)
    told = ask(gateway, control=how, num_inference_steps=2).json()
    facts = read(base64.b64decode(told["data"][0]["b64_json"])).facts
    assert (facts["control"], facts["controlnet_conditioning_scale"]) == ("canny", "0.5")


def test_networks_are_listed_with_what_they_steer(gateway: Gateway) -> None:
    with gateway.client() as client:
        told = {one["id"]: one for one in client.get("/controls").json()["controls"]}
        models = [one["id"] for one in client.get("/v1/models").json()["data"]]
        status = client.get("/models/canny/status").json()
    assert set(told["canny"]["models"]) == {"sd", "sd-inpaint"}
    assert told["of-flux"]["models"] == ["flux"]
    assert told["canny"]["state"] == status["state"] == "on_disk"
    assert not set(told) & set(models)


# -- what is refused -------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"control": under("nobody")}, "control.model"),
    ({"control": under("xl")}, "control.model"),
    ({"control": under("of-flux")}, "control.model"),
    ({"control": {"model": "canny"}}, "control.image"),
    ({"control": {"model": "canny", "image": "####"}}, "control.image"),
    ({"control": {"model": "canny", "image": "R0lGODlh"}}, "control.image"),
    ({"control": {"image": encoded(CONTROL)}}, "control.model"),
    ({"control": under("canny", weight=1.0)}, "control.weight"),
    ({"control": "canny"}, "control"),
    ({"control": ["canny"]}, "control"),
    (
        {"control": under("canny", controlnet_conditioning_scale=-1.0)},
        "control.controlnet_conditioning_scale",
    ),
    (
        {"control": under("canny", controlnet_conditioning_scale=99.0)},
        "control.controlnet_conditioning_scale",
    ),
    ({"control": under("canny", control_guidance_end=1.5)}, "control.control_guidance_end"),
    (
        {"control": under("canny", control_guidance_start=0.5, control_guidance_end=0.5)},
        "control.control_guidance_start",
    ),
    ({"control": under("wide")}, "control.model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD)
def test_what_cannot_be_is_refused(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    answer = ask(gateway, num_inference_steps=2, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_bombs_are_refused_by_their_header_before_there_is_a_job(gateway: Gateway) -> None:
    bomb = Image.new("1", (9000, 9000))
    with gateway.client() as client:
        before = client.get("/jobs").json()["jobs"][:1]
        answer = ask(gateway, control=under("canny", bomb))
        assert client.get("/jobs").json()["jobs"][:1] == before
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control.image")


def test_a_damaged_control_picture_is_refused(gateway: Gateway) -> None:
    torn = base64.b64encode(file_of(CONTROL)[:-200]).decode()
    answer = ask(gateway, control={"model": "canny", "image": torn}, num_inference_steps=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control.image")


def test_a_model_whose_kind_has_none_says_so(gateway: Gateway) -> None:
    answer = ask(
        gateway, "image2image", model="sd3", control=under("of-sd3"), num_inference_steps=2
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control")
    assert "text2image only" in answer.json()["error"]["message"]


def test_a_form_with_two_control_pictures_is_refused(gateway: Gateway) -> None:
    answer = ask(
        gateway, "image2image", control=under("canny"), control_image=file_of(OTHER), steps=2
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control.image")
    answer = ask(gateway, "image2image", control_image=file_of(OTHER), steps=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control.model")


@pytest.mark.parametrize(
    "args",
    [
        [{"model": "canny", "module": "canny", "image": encoded(CONTROL)}],
        [{"model": "canny", "image": encoded(CONTROL)}] * 2,
        ["canny"],
        [{"model": 3}],
        "canny",
    ],
)
def test_scripts_that_cannot_be_are_refused(gateway: Gateway, args: Any) -> None:
    body = {"prompt": PROMPT, "alwayson_scripts": {"controlnet": {"args": args}}}
    with gateway.client() as client:
        answer = client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "alwayson_scripts"


# -- networks that are broken ----------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["short", "torn", "other"])
def test_a_network_that_cannot_be_loaded_takes_nothing_along(gateway: Gateway, broken: str) -> None:
    plain = drawn(ask(gateway, num_inference_steps=2))
    answer = ask(gateway, control=under(broken), num_inference_steps=2)
    error = answer.json()["error"]
    assert answer.status_code == 500
    assert (error["code"], error["param"]) == ("model_unavailable", "control.model")
    with gateway.client() as client:
        controls = {one["id"]: one for one in client.get("/controls").json()["controls"]}
        model = client.get("/models/sd/status").json()
    assert controls[broken]["state"] == "unavailable"
    assert broken in controls[broken]["reason"]
    assert (controls["canny"]["state"], model["state"]) == ("on_disk", "on_disk")
    assert drawn(ask(gateway, control=under("canny"), num_inference_steps=2)).any()
    assert np.array_equal(drawn(ask(gateway, num_inference_steps=2)), plain)
