"""The real openai SDK against a real gateway with a real model; the pictures are looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from openai.types import Image as Image_
from PIL import Image

from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64, pixels

RED_CIRCLE = "a red circle on a white background"


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_readme_picture(client: OpenAI) -> None:
    answer = client.images.generate(model="sketch", prompt=RED_CIRCLE)
    assert answer.data is not None
    assert answer.data[0].url is None
    picture = from_base64(answer.data[0].b64_json or "")
    assert picture.shape == (256, 256, 3)
    assert colour_at(picture, 0.5, 0.5) == "red"
    assert corners(picture) == {"white"}


@pytest.mark.parametrize(
    ("prompt", "centre", "corner"),
    [
        ("a blue circle on a yellow background", "blue", "yellow"),
        ("a green square on a black background", "green", "black"),
        ("a yellow circle on a blue background", "yellow", "blue"),
    ],
)
def test_pictures_obey_the_prompt(client: OpenAI, prompt: str, centre: str, corner: str) -> None:
    picture = draw(client, prompt=prompt, extra_body={"seed": 5})
    assert (colour_at(picture, 0.5, 0.5), corners(picture)) == (centre, {corner})


def levels(image: Image_) -> NDArray[np.int16]:
    return from_base64(image.b64_json or "").astype(np.int16)


def test_a_seed_draws_the_same_and_image_i_is_seed_plus_i(client: OpenAI) -> None:
    two = client.images.generate(prompt=RED_CIRCLE, n=2, extra_body={"seed": 41, "steps": 4})
    one = client.images.generate(prompt=RED_CIRCLE, extra_body={"seed": 42, "steps": 4})
    assert two.data is not None
    assert one.data is not None
    assert [image.seed for image in two.data] == [41, 42]  # type: ignore[attr-defined]
    alone, beside = (levels(picture) for picture in (one.data[0], two.data[1]))
    assert abs(alone - beside).max() <= 1  # rows of one batch are rounded a little otherwise
    assert abs(alone - levels(two.data[0])).max() > 50


def test_strict_pictures_are_the_same_bit_for_bit_alone_and_among_others(client: OpenAI) -> None:
    strict = {"steps": 4, "preset": "strict"}
    two = client.images.generate(prompt=RED_CIRCLE, n=2, extra_body={"seed": 41, **strict})
    one = client.images.generate(prompt=RED_CIRCLE, extra_body={"seed": 42, **strict})
    assert two.data is not None
    assert one.data is not None
    assert two.data[1].b64_json == one.data[0].b64_json


def test_without_a_seed_equal_prompts_draw_different_pictures(client: OpenAI) -> None:
    drawn = [draw(client, prompt=RED_CIRCLE, extra_body={"steps": 4}) for _ in range(2)]
    assert not np.array_equal(drawn[0], drawn[1])


def test_sizes_are_rounded_and_echoed(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt=RED_CIRCLE,
        size="257x190",
        extra_body={"steps": 4},
    )
    assert answer.size == "256x192"
    assert answer.data is not None
    assert from_base64(answer.data[0].b64_json or "").shape == (192, 256, 3)
    at_the_limit = client.images.generate(
        prompt=RED_CIRCLE,
        size="513x511",
        extra_body={"steps": 1},
    )
    assert at_the_limit.size == "512x512"


@pytest.mark.parametrize("model", ["", "dall-e-3", "gpt-image-1", None])
def test_foreign_and_missing_names_mean_the_default_model(
    client: OpenAI, model: str | None
) -> None:
    answer = client.images.generate(model=model, prompt=RED_CIRCLE, extra_body={"steps": 2})
    assert answer.model == "sketch"  # type: ignore[attr-defined]


def test_other_formats(client: OpenAI) -> None:
    formats: list[Literal["jpeg", "webp"]] = ["jpeg", "webp"]
    for name in formats:
        answer = client.images.generate(
            prompt=RED_CIRCLE,
            output_format=name,
            extra_body={"steps": 2},
        )
        assert answer.data is not None
        data = base64.b64decode(answer.data[0].b64_json or "")
        assert Image.open(io.BytesIO(data)).format == name.upper()


def test_a_url_can_be_fetched_and_b64_is_then_absent(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt=RED_CIRCLE, response_format="url", extra_body={"steps": 8}
    )
    assert answer.data is not None
    assert answer.data[0].b64_json is None
    fetched = httpx.get(answer.data[0].url or "")
    assert fetched.headers["content-type"] == "image/png"
    assert corners(pixels(fetched.content)) == {"white"}


def test_a_png_tells_how_it_was_drawn(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="ein Kreis, größer ✓", extra_body={"seed": 7, "steps": 2}
    )
    assert answer.data is not None
    text = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))).info
    assert (text["prompt"], text["seed"], text["model"]) == ("ein Kreis, größer ✓", "7", "sketch")


def test_a_stream_ends_with_a_completed_picture_for_each_image(client: OpenAI) -> None:
    stream = client.images.generate(prompt=RED_CIRCLE, stream=True, n=2, extra_body={"seed": 3})
    events: list[Any] = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    # Both are drawn side by side, and either may be encoded first.
    assert sorted((event.image_index, event.seed) for event in events) == [(0, 3), (1, 4)]
    for event in events:
        assert colour_at(from_base64(event.b64_json), 0.5, 0.5) == "red"
        assert event.usage.input_tokens_details.text_tokens > 5
        assert event.usage.output_tokens == 256  # patches of 16 x 16 pixels


def test_flux_draws_behind_the_same_door(client: OpenAI) -> None:
    picture = draw(client, model="sketch-flux", prompt=RED_CIRCLE)
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 1


def test_models_can_be_listed_and_read(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"sketch", "sketch-flux"}
    model = client.models.retrieve("sketch")
    assert model.owned_by == "easel"
    assert "ddim" in model.samplers  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/none")


def test_errors_reach_the_sdk_as_its_own_kinds(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(model="nothing-here", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as banana:
        client.images.generate(prompt="x", size="banana")
    assert banana.value.param == "size"
    with pytest.raises(openai.BadRequestError) as sampler:
        client.images.generate(prompt="x", extra_body={"sampler": "magic"})
    assert sampler.value.param == "sampler"
    assert "dpmpp_2m" in sampler.value.message


def draw(client: OpenAI, **given: Any) -> Any:
    answer = client.images.generate(**given)
    return from_base64(answer.data[0].b64_json)
