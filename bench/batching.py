"""What sharing a forward does to a picture: latents drawn beside others against latents drawn alone.

The engine itself, in this process, without any server: the same requests one by one and then all at
once. Latents are taken where they enter the VAE's decoder, and those drawn alone are compared with the
stock pipeline's too, bit for bit. Whose latents are whose is told by likeness: others differ wholly.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch: as the workers have it

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import torch

from app.domain.events import EngineEvent, StepFinished
from app.domain.model_card import ModelCard
from app.domain.request import Arguments, GenerationRequest
from app.engines.base import Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.turnstile import Turnstile
from app.workers.engine_host import engine_for
from bench.stats import Row
from bench.wishes import Wish, bundled, scheduler_of

_TOGETHER = 8


def run(*, quick: bool) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    equal = True
    for name in ("sketch", "sketch-flux"):
        found, same = _model(bundled()[name], 4 if quick else _TOGETHER)
        rows += found
        equal = equal and same
    return rows, equal


class _Studio:
    """An engine whose latents are caught on their way to the decoder."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.engine = engine_for(card, Turnstile())
        assert isinstance(self.engine, DiffusersEngine)
        self.engine.load(card, "cpu")
        self.caught: list[torch.Tensor] = []
        self.shared: list[int] = []
        vae = self.engine._pipelines["text2image"].vae  # noqa: SLF001
        self.vae = vae.config
        vae.decode = self._catching(vae.decode)

    def _catching(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        def catch(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.caught.append(latents.clone())
            return decode(latents, *args, **kwargs)

        return catch

    def draw(self, wish: Wish, batch: int) -> None:
        self.engine.generate(self._request(wish), self._report, Sharing(batch=batch))

    def taken(self) -> list[torch.Tensor]:
        caught, self.caught = self.caught, []
        return caught

    def _request(self, wish: Wish) -> GenerationRequest:
        given = Arguments(
            prompt=wish.prompt,
            width=wish.size,
            height=wish.size,
            num_inference_steps=wish.count,
            seed=wish.seed,
        )
        return self.card.resolve(given, draw_seed=lambda: 0)

    def _report(self, event: EngineEvent) -> None:
        if isinstance(event, StepFinished):
            self.shared.append(event.batch)


def _model(card: ModelCard, count: int) -> tuple[list[Row], bool]:
    studio = _Studio(card)
    # Different numbers of steps: they join and leave each other's forwards.
    wishes = [Wish(card, seed, 128, 6 + seed % 3) for seed in range(count)]
    alone = []
    for wish in wishes:
        studio.draw(wish, 1)
        alone += studio.taken()
    studio.shared.clear()
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda wish: studio.draw(wish, count), wishes))
    beside = studio.taken()
    off = [min(_relative(one, other) for other in beside) for one in alone]
    stock = _stock(card, wishes[0], studio)
    same = torch.equal(stock, alone[0])
    return [
        Row(
            "batching",
            f"{card.id}: latents of {count} at once / alone, relative L2, largest",
            f"{max(off):.1e}; a forward held {statistics.mean(studio.shared):.1f} pictures",
            "<= 1e-5 (G8)",
        ),
        Row(
            "batching",
            f"{card.id}: latents alone / stock pipeline",
            "equal" if same else f"off by {_relative(stock, alone[0]):.1e}",
            "equal (G7)",
        ),
    ], same and max(off) <= 1e-5


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@torch.inference_mode()
def _stock(card: ModelCard, wish: Wish, studio: _Studio) -> torch.Tensor:
    """What the stock pipeline gives to its decoder."""
    pipeline = getattr(diffusers, card.pipeline_name).from_pretrained(
        card.source, dtype=torch.float32, local_files_only=True
    )
    pipeline.scheduler = getattr(diffusers, scheduler_of(card)).from_config(
        pipeline.scheduler.config
    )
    pipeline.set_progress_bar_config(disable=True)
    caught = []

    def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        caught.append(latents.clone())
        raise StopIteration

    pipeline.vae.decode = decode
    arguments = {**wish.arguments(), "generator": torch.Generator("cpu").manual_seed(wish.seed)}
    del arguments["seed"]
    try:
        pipeline(**arguments)
    except StopIteration:
        return caught[0]
    raise RuntimeError("the stock pipeline did not decode")
