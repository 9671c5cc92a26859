"""Edits and variations by the real openai SDK, on a real gateway with a real model."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image, ImageDraw

from tests.gateway import Gateway
from tests.pictures import COLOURS, colour_at, corners, from_base64

BLUE_CIRCLE = "a blue circle on a white background"
QUICK = {"steps": 4, "seed": 1}
EXIF_ORIENTATION = 274
QUARTER_TURN = 6


def red_circle(width: int = 256, height: int = 256) -> Image.Image:
    picture = Image.new("RGB", (width, height), COLOURS["white"])
    x, y, radius = width / 2, height / 2, 0.3 * min(width, height)
    ImageDraw.Draw(picture).ellipse(
        (x - radius, y - radius, x + radius, y + radius), COLOURS["red"]
    )
    return picture


def right_half(mode: str, edit: Any, keep: Any) -> Image.Image:
    """A mask: the right half is `edit`, the left half `keep`."""
    mask = Image.new(mode, (256, 256), keep)
    mask.paste(edit, (128, 0, 256, 256))
    return mask


def file_of(picture: Image.Image, format: str = "PNG", **given: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **given)
    return buffer.getvalue()


RED_PNG = file_of(red_circle())


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def edit(client: OpenAI, image: bytes = RED_PNG, **given: Any) -> Any:
    return client.images.edit(image=image, **{"prompt": BLUE_CIRCLE, **given})


def drawn(answer: Any) -> NDArray[np.uint8]:
    return from_base64(answer.data[0].b64_json)


def test_a_strong_edit_recolours_what_is_there(client: OpenAI) -> None:
    picture = drawn(edit(client, extra_body={"strength": 0.8, "seed": 5}))
    assert colour_at(picture, 0.5, 0.5) == "blue"
    assert corners(picture) == {"white"}


def test_a_weak_edit_leaves_the_picture_as_it_is(client: OpenAI) -> None:
    picture = drawn(edit(client, extra_body={"strength": 0.2, "seed": 5}))
    assert colour_at(picture, 0.5, 0.5) == "red"
    assert corners(picture) == {"white"}
    assert difference(picture).mean() < 12


@pytest.mark.parametrize(
    "mask",
    [
        right_half("RGBA", edit=(0, 0, 0, 0), keep=(0, 0, 0, 255)),
        right_half("L", edit=255, keep=0),
    ],
    ids=["transparent means edit", "white means edit"],
)
def test_a_mask_keeps_what_it_covers_and_frees_the_rest(client: OpenAI, mask: Image.Image) -> None:
    prompt = "a blue circle on a green background"
    answer = edit(client, prompt=prompt, mask=file_of(mask), extra_body={"seed": 5})
    changed = difference(drawn(answer))
    assert changed[:, :128].mean() <= 6
    assert changed[:, 128:].mean() > 30


def difference(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Grey levels by which each pixel differs from the red circle that was sent."""
    before = np.asarray(red_circle(), dtype=np.float64)
    result: NDArray[np.float64] = np.abs(picture - before).mean(axis=-1)
    return result


@pytest.mark.parametrize(
    ("sent", "size"),
    [
        ((300, 200), "304x200"),  # to the nearest multiple of 8
        ((131, 257), "128x256"),
        ((1000, 500), "512x256"),  # shrunk to what the model can draw
        ((64, 64), "128x128"),  # enlarged
    ],
)
def test_the_size_is_that_of_the_input_as_near_as_it_can_be_drawn(
    client: OpenAI, sent: tuple[int, int], size: str
) -> None:
    answer = edit(client, file_of(red_circle(*sent), "JPEG"), extra_body=QUICK)
    assert answer.size == size
    height, width = drawn(answer).shape[:2]
    assert f"{width}x{height}" == size


def test_a_size_that_is_asked_for_goes_before_that_of_the_input(client: OpenAI) -> None:
    assert edit(client, size="128x192", extra_body=QUICK).size == "128x192"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_taken_sideways_is_turned_upright(client: OpenAI, kind: str) -> None:
    sideways = Image.new("RGB", (304, 200), COLOURS["white"])
    sideways.paste(COLOURS["blue"], (0, 0, 152, 200))  # the left becomes the top
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    data = file_of(sideways, kind, exif=exif)
    answer = edit(client, data, prompt="blue", extra_body={"strength": 0.1, "steps": 10})
    assert answer.size == "200x304"
    assert colour_at(drawn(answer), 0.5, 0.1) == "blue"
    assert colour_at(drawn(answer), 0.5, 0.9) == "white"


def test_what_is_transparent_in_the_input_is_white(client: OpenAI) -> None:
    picture = red_circle().convert("RGBA")
    picture.putalpha(right_half("L", edit=0, keep=255))
    answer = edit(client, file_of(picture), extra_body={"strength": 0.1, "steps": 10})
    assert colour_at(drawn(answer), 0.4, 0.5) == "red"
    assert colour_at(drawn(answer), 0.65, 0.5) == "white"


def test_every_input_format_is_taken_by_its_bytes_whatever_its_name(gateway: Gateway) -> None:
    with gateway.client() as client:
        for kind in ("PNG", "JPEG", "WEBP"):
            part = ("wrong.txt", file_of(red_circle(), kind), "text/plain")
            answer = client.post(
                "/v1/images/edits",
                data={"prompt": "x", "steps": "2"},
                files={"image": part},
            )
            assert answer.status_code == 200, kind


def test_parts_come_in_any_order_and_text_is_read_as_numbers(gateway: Gateway) -> None:
    mask = file_of(right_half("L", edit=255, keep=0))
    parts: list[tuple[str, Any]] = [
        ("mask", ("m.png", mask)),
        ("seed", (None, "41")),
        ("n", (None, "2")),
        ("image[]", ("i.png", RED_PNG)),
        ("size", (None, "")),
        ("steps", (None, "2")),
        ("preset", (None, "strict")),  # two that share steps may be rounded otherwise
        ("prompt", (None, BLUE_CIRCLE)),
    ]
    with gateway.client() as client:
        answers = [
            client.post("/v1/images/edits", files=order).json() for order in (parts, parts[::-1])
        ]
    assert [image["seed"] for image in answers[0]["data"]] == [41, 42]
    assert answers[0]["data"] == answers[1]["data"]


def test_several_images_are_refused_and_none_is_dropped_in_silence(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=[RED_PNG, RED_PNG], prompt="x")
    assert error.value.param == "image"
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=[], prompt="x", extra_body={"steps": 2})
    assert error.value.param == "image"


WRONG_FILES = {
    "gif": file_of(red_circle(), "GIF"),
    "text": b"not a picture",
    "nothing": b"",
    "png that ends in its header": RED_PNG[:20],
    "png that ends in the middle": RED_PNG[: len(RED_PNG) // 2],
    "jpeg that is none": b"\xff\xd8\xff" + b"x" * 50,
    "webp that is none": b"RIFF0000WEBPxxxx",
}


@pytest.mark.parametrize("name", WRONG_FILES)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_files_that_are_no_picture_are_refused_by_name(
    client: OpenAI, name: str, param: str
) -> None:
    files: dict[str, Any] = {"image": RED_PNG, param: WRONG_FILES[name]}
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(**files, prompt="x", extra_body={"steps": 2})
    assert error.value.param == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "background": "transparent"}, "background"),
        ({"prompt": "x", "strength": "1.5"}, "strength"),
        ({"prompt": "x", "n": "two"}, "n"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "markup": "y"}, "markup"),
        ({}, "prompt"),
    ],
)
def test_a_wrong_text_field_is_named(gateway: Gateway, given: dict[str, str], param: str) -> None:
    with gateway.client() as client:
        answer = client.post("/v1/images/edits", data=given, files={"image": ("i.png", RED_PNG)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_stream_of_an_edit_shows_the_right_colours_at_half_of_the_steps(client: OpenAI) -> None:
    events: list[Any] = list(
        edit(client, stream=True, partial_images=1, extra_body={"strength": 0.8, "seed": 5})
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    partial = from_base64(events[0].b64_json)
    assert partial.shape == (256, 256, 3)
    assert (colour_at(partial, 0.5, 0.5), corners(partial)) == ("blue", {"white"})
    assert 30 < events[0].progress < 80
    assert colour_at(from_base64(events[1].b64_json), 0.5, 0.5) == "blue"
    assert events[1].usage.input_tokens_details.image_tokens == 256  # patches of 16 x 16 pixels


def test_two_edits_differ_and_have_their_own_seeds(client: OpenAI) -> None:
    answer = edit(client, n=2, extra_body=QUICK)
    assert [image.seed for image in answer.data] == [1, 2]
    assert answer.data[0].b64_json != answer.data[1].b64_json


def test_a_variation_needs_no_prompt_and_resembles_its_input(client: OpenAI) -> None:
    settings = {"strength": 0.4, "seed": 5}
    with pytest.warns(DeprecationWarning, match="deprecated"):  # OpenAI has retired variations
        answer = client.images.create_variation(image=RED_PNG, extra_body=settings)
    assert colour_at(drawn(answer), 0.5, 0.5) == "red"
    assert difference(drawn(answer)).mean() > 0.5


def test_each_route_takes_its_own_kind_of_body(gateway: Gateway) -> None:
    with gateway.client() as client:
        for path in ("edits", "variations"):
            answer = client.post(f"/v1/images/{path}", json={"prompt": "x"})
            assert answer.status_code == 415
            assert "multipart/form-data" in answer.json()["error"]["message"]
        form = {"image": ("i.png", RED_PNG)}
        answer = client.post("/v1/images/generations", data={"prompt": "x"}, files=form)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]["message"]


def test_an_upload_too_large_is_refused_by_its_length_alone(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99999999\r\n\r\n"
        )
        answer = sock.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert httpx.get(f"{gateway.url}/health").status_code == 200
