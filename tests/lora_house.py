"""Tiny models of every kind, LoRAs for them, and what engines and stock diffusers draw with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.events import EngineEvent, StepFinished
from app.domain.lora import Lora
from app.domain.model_card import ModelCard
from app.domain.request import Arguments, GenerationRequest
from app.engines.base import ALONE, Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.image_codec import Pixels
from app.engines.turnstile import Turnstile
from app.settings import load_cards
from app.workers.engine_host import engine_for
from tests import loras, zoo
from tests.kinds import KINDS, MASK, PICTURE, SIDE, card_of, drawn_by_hand, save, strength_of, wish
from tests.painter import pictures, png

Named = Sequence[tuple[str, float]]


class House:
    """Folders with one model of each kind, and LoRAs for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}

    def card(self, name: str) -> ModelCard:
        if not (self.folder / name).exists():
            save(KINDS[name], self.folder / name)
            text = card_of(name, KINDS[name], self.folder / name)
            (self.folder / f"{name}.toml").write_text(text)
        return load_cards(self.folder)[name]

    def files(self, name: str) -> list[Path]:
        """Three LoRAs for the model: a and b act on its text encoders too, c does not."""
        if name not in self._files:
            built = zoo_pipeline(name)
            self._files[name] = [
                loras.write(
                    self.folder / "loras" / name / f"{letter}.safetensors",
                    loras.tensors(built, seed=seed, rank=seed, text=letter != "c"),
                )
                for seed, letter in enumerate("abc", 2)
            ]
        return self._files[name]

    def file(self, name: str, letter: str) -> str:
        return str(self.files(name)["abc".index(letter)])


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """In a file that imports it, all is computed on one core: sums come in one order then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    zoo.forget()
    return House(tmp_path_factory.mktemp("loras"))


def zoo_pipeline(name: str) -> Any:
    import diffusers

    kind = KINDS[name]
    return getattr(diffusers, kind.pipeline)(**kind.parts())


def engine(house: House, name: str, **given: Any) -> DiffusersEngine:
    card = house.card(name)
    made = engine_for(card, Turnstile(begin=partial(torch.set_num_threads, 1)), **given)
    assert isinstance(made, DiffusersEngine)
    made.load(card, "cpu")
    return made


def asked(house: House, name: str, named: Named, preset: str = "strict") -> GenerationRequest:
    card, kind = house.card(name), KINDS[name]
    task = next(iter(kind.tasks))
    given: dict[str, Any] = {**wish(kind, task), **strength_of(kind, task)}
    for key in ("guidance_scale", "true_cfg_scale"):
        if key in kind.stock:
            given[key] = kind.stock[key]
    if task != "text2image":
        given["image"] = png(np.asarray(PICTURE))
    if task == "inpaint":
        given["mask_image"] = png(np.asarray(MASK))
    files = tuple(Lora(letter, scale, house.file(name, letter)) for letter, scale in named)
    arguments = Arguments(**given, seed=7, width=SIDE, height=SIDE, preset=preset)
    request = card.resolve(arguments, draw_seed=lambda: 0)
    return with_loras(request, files)


def with_loras(request: GenerationRequest, files: tuple[Lora, ...]) -> GenerationRequest:
    from msgspec.structs import replace

    return replace(request, loras=files)


def drawn(
    made: DiffusersEngine, request: GenerationRequest, sharing: Sharing = ALONE
) -> tuple[Pixels, list[int]]:
    """The picture, and how many shared each of its steps."""
    events: list[EngineEvent] = []
    made.generate(request, events.append, sharing)
    (picture,) = pictures(events)
    return picture, [event.batch for event in events if isinstance(event, StepFinished)]


def by_hand(house: House, name: str, named: Named) -> Pixels:
    task = next(iter(KINDS[name].tasks))
    files = [Path(house.file(name, letter)) for letter, _ in named]
    scales = [scale for _, scale in named]
    prepare: Callable[[Any], None] = partial(loras.put, files=files, scales=scales)
    return drawn_by_hand(house.folder, name, task, prepare=prepare)
