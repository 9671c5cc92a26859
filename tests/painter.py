"""The real engine with a bundled model in this process, beside the same model in stock diffusers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from app.domain.events import EngineEvent, ImageFinished, StepFinished, Waited
from app.domain.request import Arguments, GenerationRequest
from app.engines.base import ALONE, Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.image_codec import Pixels
from app.settings import load_cards
from tests.pictures import pixels

CARDS = load_cards(Path(__file__).parent.parent / "config" / "models")
PROMPT = "a large red circle on a white background"
SMALL: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 5, "seed": 3}


class Painter:
    """An engine with its model, the same model as a stock pipeline, and what to do with both."""

    def __init__(self, model: str, family: Any) -> None:
        self.card = card = CARDS[model]
        self.engine = DiffusersEngine(family.RECIPES)
        self.engine.load(card, "cpu")
        kind = getattr(diffusers, card.pipeline_name)
        self.stock = kind.from_pretrained(card.source, dtype=torch.float32)
        self.config = self.stock.scheduler.config

    def wish(self, prompt: str = PROMPT, **given: Any) -> GenerationRequest:
        arguments = Arguments(prompt=prompt, **{**SMALL, **given})
        return self.card.resolve(arguments, draw_seed=lambda: 1)

    def run(
        self,
        request: GenerationRequest,
        hook: Callable[[EngineEvent], None] = lambda event: None,
        sharing: Sharing = ALONE,
    ) -> list[EngineEvent]:
        events: list[EngineEvent] = []

        def report(event: EngineEvent) -> None:
            if not isinstance(event, Waited):  # as often as the machine is busy
                events.append(event)
                hook(event)

        self.engine.generate(request, report, sharing)
        return events

    def draw(self, prompt: str = PROMPT, **given: Any) -> Pixels:
        (picture,) = pictures(self.run(self.wish(prompt, **given)))
        return picture

    def by_hand(self, kind: str, scheduler: Any, **given: Any) -> Pixels:
        """What stock diffusers draws: class `kind`, without any code of ours."""
        pipeline = getattr(diffusers, kind)(**{**self.stock.components, "scheduler": scheduler})
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(generator=torch.Generator("cpu").manual_seed(SMALL["seed"]), **given)
        return np.asarray(drawn.images[0])

    @property
    def pipeline(self) -> Any:
        return self.engine._pipelines["text2image"]


def pictures(events: list[EngineEvent]) -> list[Pixels]:
    return [pixels(event.image) for event in events if isinstance(event, ImageFinished)]


def steps(events: list[EngineEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepFinished)]


def png(picture: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def right_half() -> Pixels:
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    return mask
