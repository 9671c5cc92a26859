"""Who draws for a model that cannot be loaded: the chain, the choice, what a job remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import InvalidOutput, ModelUnavailable, OutOfMemory
from app.domain.events import NumberedEvent, Started
from app.domain.fallback import chain
from app.domain.job import Job
from app.domain.model_card import Defaults, ModelCard
from app.domain.request import Arguments, GenerationRequest
from app.scheduling.fallback import Fallback
from app.settings import ConfigurationError, load_cards


def card(name: str, *fallback: str) -> ModelCard:
    defaults = Defaults(sampler="euler")
    return ModelCard(
        id=name,
        family="fake",
        source="/",
        tasks=("image2image",),
        fallback=fallback,
        defaults=defaults,
    )


def cards(**fallbacks: str) -> dict[str, ModelCard]:
    return {name: card(name, *given.split()) for name, given in fallbacks.items()}


def request(name: str) -> GenerationRequest:
    return card(name).resolve(Arguments(prompt="x", image=b"p"), draw_seed=lambda: 1)


def test_each_fallback_is_followed_by_its_own() -> None:
    known = cards(a="b d", b="c", c="", d="c e", e="")
    assert chain(known, "a") == ("b", "c", "d", "e")
    assert chain(known, "c") == ()


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ({"a": "z"}, "the fallback z of model a has no card"),
        ({"a": "a"}, "model a would be its own fallback"),
        ({"a": "b", "b": "c", "c": "b"}, "model b would be its own fallback"),
    ],
)
def test_a_chain_that_leads_nowhere_is_a_mistake(given: dict[str, str], mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        chain(cards(**given), "a")


def test_that_ends_the_start(tmp_path: Path) -> None:
    text = (
        'id = "{}"\nfamily = "fake"\nsource = "."\nfallback = ["{}"]\n[defaults]\nsampler = "euler"'
    )
    (tmp_path / "a.toml").write_text(text.format("a", "b"))
    with pytest.raises(ConfigurationError, match="the fallback b of model a has no card"):
        load_cards(tmp_path)
    (tmp_path / "b.toml").write_text(text.format("b", "a"))
    with pytest.raises(ConfigurationError, match="its own fallback"):
        load_cards(tmp_path)


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), OutOfMemory("too large")])
def test_only_a_failed_load_leads_on(error: ModelUnavailable | OutOfMemory) -> None:
    choices = [(card(name), request(name)) for name in "bc"]
    fallback = Fallback(list(choices))
    assert fallback.after(error, loading=False) is error
    assert fallback.after(InvalidOutput("NaN"), loading=True).__class__ is InvalidOutput
    assert fallback.after(error, loading=True) == choices[0]
    assert fallback.after(ModelUnavailable("second"), loading=True) == choices[1]
    assert fallback.after(ModelUnavailable("third"), loading=True) is error


def test_a_job_is_of_the_model_that_draws_it() -> None:
    instead = request("b").without_pictures()
    job = Job(
        id="1", owner="", door="", request=request("a"), created=0, changed=0, instead=(instead,)
    )
    for number, (model, drawn) in enumerate([("a", "a"), ("", "a"), ("z", "a"), ("b", "b")], 1):
        job.apply(NumberedEvent(number, 0.0, Started("w", number, model)))
        assert job.request.model == drawn
        assert job.request.image == b"p"
