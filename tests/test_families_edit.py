"""Qwen-Image-Edit in the engine. Without torchvision its processor of pictures cannot be saved.

So its parts stay in memory here: promised is the stock pipeline's picture, bit for bit, and every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from transformers.processing_utils import ProcessorMixin

from app.domain.events import EngineEvent
from app.domain.request import Arguments
from app.engines import diffusers_engine
from app.engines.diffusion_transformer import RECIPES
from app.settings import load_cards
from tests.kinds import PICTURE, SIDE, WITH_TORCHVISION, card_of
from tests.painter import pictures, png, steps

pytestmark = pytest.mark.filterwarnings("ignore")

GIVEN: dict[str, Any] = {
    "prompt": "a red fox",
    "negative_prompt": "a blue hen",
    "true_cfg_scale": 3.0,
    "num_inference_steps": 3,
    "width": SIDE,
    "height": SIDE,
}


@pytest.mark.parametrize("name", WITH_TORCHVISION)
def test_an_instructed_edit_is_that_of_the_stock_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = ProcessorMixin.check_argument_for_proper_class

    def but_for_films(self: Any, argument: str, value: Any) -> Any:
        return None if value is None else check(self, argument, value)

    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", but_for_films)
    kind = WITH_TORCHVISION[name]
    (tmp_path / "card.toml").write_text(card_of(name, kind, tmp_path))
    card = load_cards(tmp_path)[name]
    stock = getattr(diffusers, kind.pipeline)(**kind.parts())
    stock.set_progress_bar_config(disable=True)
    chance = torch.Generator("cpu").manual_seed(7)
    with torch.inference_mode():
        drawn = stock(**GIVEN, image=PICTURE, generator=chance).images[0]

    engine = diffusers_engine.DiffusersEngine(RECIPES)
    loaded = getattr(diffusers, kind.pipeline)(**kind.parts())
    monkeypatch.setattr(diffusers_engine, "load_pipeline", lambda *_, **__: loaded)
    engine.load(card, "cpu")
    wish = Arguments(**GIVEN, seed=7, image=png(np.asarray(PICTURE)))
    events: list[EngineEvent] = []
    engine.generate(card.resolve(wish, draw_seed=lambda: 0), events.append)
    assert steps(events) == [1, 2, 3]
    assert np.array_equal(pictures(events)[0], np.asarray(drawn))
