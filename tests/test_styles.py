"""Styles: words around a prompt for those who ask, told to everybody, and nothing for the others."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.domain.errors import InvalidRequest
from app.domain.request import Arguments
from app.domain.style import MOST, Style, Styles
from app.engines.picture_text import read
from app.settings import ConfigurationError, load_styles
from tests.gateway import Gateway
from tests.pictures import colour_at, corners, from_base64

FILE = Path(__file__).parent.parent / "config" / "styles.toml"
BUNDLED = load_styles(FILE)
RED_CIRCLE = "a red circle on a white background"
STYLES = Styles(
    {
        "film": Style(prefix="a still of", suffix="grain", negative="flat", aliases=("Movie 35",)),
        "ink": Style(suffix="black ink", negative="colour"),
        "nothing": Style(),
    }
)


def styled(*styles: str, prompt: str = "a fox", negative: str | None = None) -> Arguments:
    given = Arguments(prompt=prompt, negative_prompt=negative, styles=styles)
    return STYLES.onto(given, "blurry")


def test_words_go_around_the_prompt_and_behind_the_negative_one() -> None:
    told = styled("film", negative="a dog")
    assert (told.prompt, told.negative_prompt) == ("a still of a fox, grain", "a dog, flat")
    assert (told.styles, told.styled) == ((), ("film",))


def test_the_first_is_innermost_and_none_counts_twice() -> None:
    told = styled("ink", "film", "movie-35", "INK")
    assert told.prompt == "a still of a fox, black ink, grain"
    assert told.styled == ("ink", "film")


def test_the_usual_negative_prompt_stays() -> None:
    assert styled("ink").negative_prompt == "blurry, colour"
    assert styled("ink", negative="").negative_prompt == "colour"
    assert styled("nothing").negative_prompt == "blurry"


def test_without_a_style_nothing_is_touched() -> None:
    given = Arguments(prompt=" a fox ")
    assert STYLES.onto(given, "blurry") == given


def test_without_a_prompt_there_is_nothing_to_put_words_around() -> None:
    assert styled("film", prompt=" ") == Arguments(prompt=" ")


@pytest.mark.parametrize("name", ["Movie 35", "movie_35", " MOVIE-35 "])
def test_names_are_forgiving(name: str) -> None:
    assert styled(name).styled == ("film",)


@pytest.mark.parametrize("name", ["movies", "", "fi lm", "x" * 10_000])
def test_an_unknown_one_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        styled(name)
    assert refused.value.param == "style"
    assert refused.value.message == "This style is not known. Styles: film, ink, nothing."


def test_too_many_are_refused() -> None:
    many = Styles({f"s{number}": Style(suffix="x") for number in range(MOST + 1)})
    with pytest.raises(InvalidRequest, match="At most 8"):
        many.onto(Arguments(prompt="x", styles=tuple(many)), "")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('[a]\naliases = ["B"]\n[b]\n', "two styles are called b"),
        ('[a]\naliases = ["b"]\n[c]\naliases = ["B"]\n', "two styles are called B"),
        ("[a]\nsufix = 'x'\n", "a.sufix"),
        ("['A b']\n", "pattern"),
        ("[a\n", "styles.toml"),
        ("a = 3\n", "a: "),
    ],
)
def test_a_file_that_is_wrong_ends_the_start(tmp_path: Path, text: str, mistake: str) -> None:
    file = tmp_path / "styles.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=mistake):
        load_styles(file)


def test_no_file_is_no_styles(tmp_path: Path) -> None:
    assert not load_styles(tmp_path / "styles.toml")


# -- at the doors ----------------------------------------------------------------------------------


def generate(gateway: Gateway, **body: Any) -> httpx.Response:
    with gateway.client() as client:
        return client.post("/v1/images/generations", json={"prompt": RED_CIRCLE, "seed": 3, **body})


def parameters_of(png: bytes) -> str:
    return str(Image.open(io.BytesIO(png)).info["parameters"])


@pytest.mark.parametrize("name", ["vivid", "natural", *BUNDLED])
def test_the_bundled_model_still_draws_what_was_asked_for(gateway: Gateway, name: str) -> None:
    told = generate(gateway, style=name).json()["data"][0]
    drawn = from_base64(told["b64_json"])
    assert (colour_at(drawn, 0.5, 0.5), corners(drawn)) == ("red", {"white"})
    assert RED_CIRCLE in told["revised_prompt"]


def test_it_is_told_in_the_answer_the_job_and_the_picture_and_drawn_again(gateway: Gateway) -> None:
    told = generate(gateway, style="Illustration", negative_prompt="blue").json()
    words = f"an illustration of {RED_CIRCLE}, clean lines, high quality"
    assert told["data"][0]["revised_prompt"] == words
    picture = base64.b64decode(told["data"][0]["b64_json"])
    with gateway.client() as client:
        job = client.get(f"/jobs/{told['job_id']}").json()
        again = client.post(f"/jobs/{told['job_id']}/replay").json()
        assert "event: succeeded" in client.get(f"/jobs/{again['id']}/events").text
        again = client.get(f"/jobs/{again['id']}").json()
        second = client.get(f"/images/{again['images'][0]}").content
    assert (job["style"], job["prompt"]) == (again["style"], again["prompt"])
    assert (job["style"], job["prompt"]) == ("illustration", words)
    assert second == picture
    facts = read(picture).facts
    assert (facts["style"], facts["prompt"]) == ("illustration", words)
    assert facts["negative_prompt"] == "blue, photograph, noise"
    assert ", Style: illustration, Version: " in parameters_of(picture)


def test_nothing_is_told_or_added_without_one(gateway: Gateway) -> None:
    told = generate(gateway, style="").json()
    with gateway.client() as client:
        job = client.get(f"/jobs/{told['job_id']}").json()
    assert "revised_prompt" not in told["data"][0]
    assert (job["style"], job["prompt"], job["negative_prompt"]) == ("", RED_CIRCLE, "")
    picture = base64.b64decode(told["data"][0]["b64_json"])
    assert "style" not in read(picture).facts
    assert "Style" not in parameters_of(picture)


def test_the_same_words_draw_the_same(gateway: Gateway) -> None:
    by_hand = generate(
        gateway, prompt=f"{RED_CIRCLE}, high quality", negative_prompt="dull, washed out"
    )
    by_name = generate(gateway, style="vivid")
    assert (
        from_base64(by_name.json()["data"][0]["b64_json"])
        == from_base64(by_hand.json()["data"][0]["b64_json"])
    ).all()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"style": "nonsense"}),
        ("/generate", {"style": "nonsense"}),
        ("/generate/stream", {"style": "nonsense"}),
        ("/v1/generate-image", {"style": "nonsense"}),
        ("/jobs", {"style": "nonsense"}),
        ("/estimate", {"style": "nonsense"}),
        ("/sdapi/v1/txt2img", {"style": "nonsense"}),
    ],
)
def test_every_door_refuses_an_unknown_one(
    fake_gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    with fake_gateway.client() as client:
        answer = client.post(path, json={"prompt": "x", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "style")


def test_a_stream_tells_it_too(fake_gateway: Gateway) -> None:
    text = generate(fake_gateway, prompt="x", style="vivid", stream=True).text
    last = json.loads(text.rstrip().rpartition("data: ")[2])
    assert last["revised_prompt"] == "x, high quality"


def test_a1111_takes_a_list_and_lists_them(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        known = client.get("/sdapi/v1/prompt-styles").json()
        body = {"prompt": "x", "styles": ["", "Mine", "vivid", "flat"], "style": "line art"}
        told = client.post("/sdapi/v1/txt2img", json=body).json()
    assert [style["name"] for style in known] == list(BUNDLED)
    assert known[0] == {
        "name": "dramatic",
        "prompt": "{prompt}, high quality",
        "negative_prompt": "dull, washed out",
    }
    info = json.loads(told["info"])
    assert info["prompt"].startswith("an icon of a line drawing of x, black ink")
    assert "Style: line-art + dramatic + flat" in info["infotexts"][0]


def test_they_are_listed(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        told = client.get("/styles").json()["styles"]
    assert [style["id"] for style in told] == list(BUNDLED)
    assert told[1]["aliases"] == ["natural"]
    done = subprocess.run(
        [sys.executable, "-m", "app", "styles", "--json"], capture_output=True, check=True
    )
    assert list(json.loads(done.stdout)) == list(BUNDLED)
