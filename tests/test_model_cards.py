"""The cards of well-known models say what is true of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.engines import samplers
from app.settings import load_cards
from bench.model_table import PAGE, page_with
from bench.published import MODELS
from bench.sizes import parameters

FOLDER = Path(__file__).parent.parent / "config" / "models"
CARDS = load_cards(FOLDER)
PICTURE = b"a picture"


def test_every_model_but_the_bundled_ones_tells_its_weights() -> None:
    assert {name for name, card in CARDS.items() if card.parameters} == set(MODELS)
    assert set(CARDS) - set(MODELS) == {"sketch", "sketch-flux"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_of_the_published_configuration(name: str) -> None:
    assert CARDS[name].parameters == parameters(name)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_what_a_card_gives_by_itself_can_be_drawn(card: ModelCard) -> None:
    samplers.check(card)
    for task in card.tasks:
        image = None if task == "text2image" else PICTURE
        mask = PICTURE if task == "inpaint" else None
        given = Arguments(prompt="a fox", image=image, mask_image=mask)
        request = card.resolve(given, draw_seed=lambda: 0)
        assert request.task == task
        assert request.size == f"{card.defaults.width}x{card.defaults.height}"
        assert request.steps_per_image >= 1
        assert card.unused(given, request) == []


def test_no_two_models_answer_to_one_name() -> None:
    names = [name for card in CARDS.values() for name in (card.id, *card.aliases)]
    assert sorted(set(names)) == sorted(names)


def test_the_table_in_the_documentation_is_current() -> None:
    assert PAGE.read_text("utf-8") == page_with(CARDS.values())
