"""`replay` gives the arguments that draw exactly a request again: for any request, by any card."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.domain.request import Arguments, GenerationRequest, Terms, replay
from tests.painter import CARDS

OF_THE_CARD = {"family", "pipeline", "task", "max_sequence_length", "technique"}
"""Fields of a request that follow from its model, its pictures or its preset."""


def never() -> int:
    raise AssertionError("a seed was drawn")


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def wishes(card: ModelCard, task: str) -> st.SearchStrategy[Arguments]:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
    limit, edit = card.limits, task != "text2image"
    usable = [name for name, one in card.kind.samplers.items() if one.edits or not edit]
    return st.builds(
        Arguments,
        prompt=text if task == "image2image" else text.filter(str.strip),
        model=st.sampled_from([None, card.id, "an-alias"]),
        negative_prompt=some(text),
        n=some(st.integers(1, 4)),
        width=some(st.integers(limit.min_side, limit.max_side)),
        height=some(st.integers(limit.min_side, limit.max_side)),
        num_inference_steps=some(st.integers(1, limit.max_steps)),
        effort=some(st.floats(0.1, 3)),
        guidance_scale=some(st.floats(0, limit.max_guidance_scale)),
        true_cfg_scale=some(st.floats(1, limit.max_guidance_scale)),
        sampler=some(st.sampled_from(usable)),
        seed=some(st.integers(-1, 2**32 - 1)),
        strength=some(st.floats(0, 1)),
        image=st.binary(max_size=9) if edit else st.none(),
        image_size=some(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
        if edit
        else st.none(),
        mask_image=st.binary(max_size=9) if task == "inpaint" else st.none(),
        output_format=some(st.sampled_from(["png", "jpg", "jpeg", "WebP"])),
        output_compression=some(st.integers(0, 100)),
        preset=some(st.sampled_from(["strict", "exact", "balanced", "fast"])),
        previews=some(st.integers(0, 10)),
        metadata=some(st.booleans()),
        terms=st.builds(Terms, priority=st.sampled_from(["interactive", "background"])),
    )


@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint"])
@pytest.mark.parametrize("model", ["sketch", "sketch-flux"])
def test_a_replay_resolves_to_the_same_request(model: str, task: str) -> None:
    card, reached = CARDS[model], set[str]()

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(wishes(card, task), st.integers(0, 2**32 - 1), st.booleans())
    def check(wish: Arguments, seed: int, metadata: bool) -> None:
        try:
            request = card.resolve(wish, draw_seed=lambda: seed, metadata=metadata)
        except InvalidRequest:
            assume(False)
            return
        reached.add(request.task)
        again = replay(request)
        assert card.resolve(again, draw_seed=never) == request
        assert card.resolve(again, draw_seed=never, metadata=not metadata) == request

    check()
    assert reached == {task}


def test_another_cards_habits_do_not_come_in() -> None:
    """Nothing is left to a default, which may be another by then."""
    card = CARDS["sketch"]
    request = card.resolve(Arguments(prompt="x"), draw_seed=lambda: 3)
    other = {"width": 512, "num_inference_steps": 1, "guidance_scale": 9.0, "sampler": "heun"}
    habits = card.defaults.model_copy(update={**other, "strength": 0.1, "negative_prompt": "x"})
    changed = card.model_copy(update={"defaults": habits, "preset": "strict"})
    assert changed.resolve(replay(request), draw_seed=never) == request


def test_no_field_is_lost() -> None:
    fields = set(GenerationRequest.__struct_fields__)
    assert fields - OF_THE_CARD <= set(Arguments.__struct_fields__)
