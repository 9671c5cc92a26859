"""Pictures to ask for, in the words of the server and in those of the stock pipeline."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from app.domain.model_card import ModelCard
from app.engines.image_codec import Pixels
from app.settings import load_cards, load_settings
from bench.raw import RawPipeline

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white")
_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
_PROMPTS = tuple(
    f"a {colour} {shape} on a {ground} background"
    for ground, shape, colour in product(_COLOURS, _SHAPES, _COLOURS)
    if colour != ground
)


@dataclass(frozen=True)
class Wish:
    """One picture. Without `side` and `steps`, the model's own. Equal seeds have equal prompts, and
    252 seeds in a row have as many prompts: a cache of prompts gains nothing by accident."""

    card: ModelCard
    seed: int
    side: int = 0
    steps: int = 0

    @property
    def prompt(self) -> str:
        return _PROMPTS[self.seed % len(_PROMPTS)]

    @property
    def size(self) -> int:
        return self.side or self.card.defaults.width

    @property
    def count(self) -> int:
        return self.steps or self.card.defaults.num_inference_steps

    def body(self, **more: Any) -> dict[str, Any]:
        """For the server, and for those that it is compared with."""
        return {
            "model": self.card.id,
            "prompt": self.prompt,
            "seed": self.seed,
            "size": f"{self.size}x{self.size}",
            "steps": self.count,
            **more,
        }

    def arguments(self) -> dict[str, Any]:
        """For the stock pipeline, `seed` among them."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.size,
            "height": self.size,
            "num_inference_steps": self.count,
            **constants(self.card),
        }


def constants(card: ModelCard) -> dict[str, Any]:
    """Arguments of the stock pipeline that all pictures of a model share."""
    given: dict[str, Any] = {"guidance_scale": card.defaults.guidance_scale}
    if card.family == "flux":
        given["max_sequence_length"] = card.defaults.max_sequence_length
    return given


def bundled() -> dict[str, ModelCard]:
    """The cards of the models that the repository holds."""
    return load_cards(load_settings().models_dir)


def scheduler_of(card: ModelCard) -> str:
    """The diffusers class behind the card's default sampler."""
    return card.kind.samplers[card.defaults.sampler].scheduler


SPIN_COUNT = os.environ.get("GOMP_SPINCOUNT", "10000")
"""How long OpenMP's threads spin before they sleep, in every arm: what the server's workers take."""


def raw_pipeline(card: ModelCard, spin_count: str | None = SPIN_COUNT) -> RawPipeline:
    """The stock pipeline of the card's model, in a process of its own."""
    return RawPipeline(card.pipeline_name, scheduler_of(card), card.source, spin_count)


def pixels_of(png: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pixels_of_answer(answer: bytes | dict[str, Any]) -> Pixels:
    """The one picture in an answer of the Images API, or in its decoded JSON."""
    told = json.loads(answer) if isinstance(answer, bytes) else answer
    return pixels_of(base64.b64decode(told["data"][0]["b64_json"]))


def farthest(one: Pixels, other: Pixels) -> int:
    """The largest difference of any value of any pixel; 255 where not even the sizes are equal."""
    if one.shape != other.shape:
        return 255
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())
