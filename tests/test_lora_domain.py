"""LoRAs as requests name them, prompts hold them and pictures tell of them."""

from __future__ import annotations

import diffusers
import pytest

from app.domain.errors import InvalidRequest
from app.domain.lora import Lora, as_prompt, checked, of_text, out_of_prompt
from app.domain.picture_facts import Origin, about, parameters
from app.domain.pipelines import LORA_FAMILIES, PIPELINES
from app.domain.request import Arguments, GenerationRequest, replay
from app.engines import diffusion_transformer, flux, stable_diffusion
from tests.painter import CARDS


def wish(*loras: Lora) -> GenerationRequest:
    given = Arguments(prompt="a fox", seed=3, loras=loras)
    return CARDS["sketch"].resolve(given, draw_seed=lambda: 0)


@pytest.mark.parametrize(
    ("prompt", "rest", "named"),
    [
        ("a fox", "a fox", ()),
        (" a fox ", " a fox ", ()),
        ("a fox <lora:snow:0.8>", "a fox", (Lora("snow", 0.8),)),
        ("<lora:snow>a fox", "a fox", (Lora("snow"),)),
        ("a <lora:a.b-c_1:-1.5>fox<lora:ice:2>", "a fox", (Lora("a.b-c_1", -1.5), Lora("ice", 2))),
        ("a fox <lora:../../etc/passwd:1>", "a fox", (Lora("../../etc/passwd"),)),
        ("a <hypernet:x:1> (fox:1.2)", "a <hypernet:x:1> (fox:1.2)", ()),
        ("a <lora:> fox", "a <lora:> fox", ()),
    ],
)
def test_a1111s_way_to_name_them(prompt: str, rest: str, named: tuple[Lora, ...]) -> None:
    assert out_of_prompt(prompt) == (rest, named)


@pytest.mark.parametrize("inside", ["snow:much", "snow:0.8:0.5", "snow:te=1", "snow:"])
def test_what_is_no_scale(inside: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        out_of_prompt(f"a fox <lora:{inside}>")
    assert refused.value.param == "prompt"
    with pytest.raises(InvalidRequest) as refused:
        of_text(inside)
    assert refused.value.param == "loras"


def test_there_and_back() -> None:
    loras = (Lora("snow", 0.123456789), Lora("ice", 1.0), Lora("b", -2.0))
    assert as_prompt(loras) == "<lora:snow:0.123456789><lora:ice:1><lora:b:-2>"
    assert out_of_prompt(as_prompt(loras)) == ("", loras)


@pytest.mark.parametrize(
    "loras",
    [
        (Lora("../snow"),),
        (Lora("/etc/passwd"),),
        (Lora("a/b"),),
        (Lora(""),),
        (Lora(".."),),
        (Lora("a\\b"),),
        (Lora("a\0b"),),
        (Lora("a" * 101),),
        (Lora("snow", 10.1),),
        (Lora("snow", float("nan")),),
        (Lora("snow", float("-inf")),),
        (Lora("snow"), Lora("snow", 0.5)),
    ],
)
def test_what_is_refused(loras: tuple[Lora, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wish(*loras)
    assert refused.value.param == "loras"


def test_where_it_lies_is_never_a_clients_to_say() -> None:
    assert checked((Lora("snow", 0.5, "/etc/passwd"),)) == (Lora("snow", 0.5),)


def test_a_replay_names_the_same() -> None:
    request = wish(Lora("snow", 0.5), Lora("ice"))
    assert CARDS["sketch"].resolve(replay(request), draw_seed=lambda: 9) == request
    assert request.lora_ids == ("loras/snow", "loras/ice")


def test_a_picture_tells_of_them() -> None:
    request = wish(Lora("snow", 0.8), Lora("ice"))
    origin = Origin("", "ab" * 32, (), (("snow", "cd" * 32), ("ice", "ef" * 32)))
    told = about(request, 3, origin)
    assert told["prompt"] == "a fox"
    assert told["loras"] == "snow:0.8, ice:1"
    assert told["lora_hashes"] == "snow: cdcdcdcdcdcd, ice: efefefefefef"
    assert told["parameters"].startswith("a fox <lora:snow:0.8><lora:ice:1>\nSteps: ")
    assert ', Lora hashes: "snow: cdcdcdcdcdcd, ice: efefefefefef", Version' in told["parameters"]


def test_a_picture_without_any_tells_nothing_of_them() -> None:
    told = about(wish(), 3, Origin())
    assert not {"loras", "lora_hashes"} & told.keys()
    assert "lora" not in parameters(wish(), 3).lower()


def test_every_pipeline_that_can_take_them_does() -> None:
    """And a model of any other refuses them."""
    recipes = {**stable_diffusion.RECIPES, **flux.RECIPES, **diffusion_transformer.RECIPES}
    for name, recipe in recipes.items():
        can = all(hasattr(kind, "load_lora_weights") for kind in recipe.classes.values())
        assert bool(PIPELINES[name].loras) == can, name
        assert set(PIPELINES[name].loras) <= set(LORA_FAMILIES)
        assert hasattr(getattr(diffusers, name), "load_lora_weights") == can


def test_a_model_that_takes_none_says_so() -> None:
    given = Arguments(prompt="x", loras=(Lora("snow"),))
    with pytest.raises(InvalidRequest, match="takes no LoRAs") as refused:
        CARDS["pixart-sigma"].resolve(given, draw_seed=lambda: 0)
    assert refused.value.param == "loras"
