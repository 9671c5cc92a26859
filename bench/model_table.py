"""The tables in docs/models.md: `python -m bench.model_table` writes them from the cards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from app.domain.memory_plan import Room, choose
from app.domain.model_card import ModelCard
from app.engines.fitting import plans_for
from app.settings import load_cards

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
_TASKS = {"text2image": "text", "image2image": "edit", "inpaint": "inpaint"}
_PLACE = re.compile(r"(<!-- (models|plans) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
_GIGABYTES = (6, 8, 12, 16, 24, 48, 80)
_RAM = 64
_WORDS = {"resident": "whole", "model_offload": "parts", "group_offload": "layers"}


def table(cards: Iterable[ModelCard]) -> str:
    rows = [
        ["id", "pipeline", "tasks", "size", "steps", "weights, billion", "licence"],
        ["---"] * 7,
        *(_row(card) for card in cards),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(card: ModelCard) -> list[str]:
    default = card.defaults
    counts = " + ".join(f"{count / 1e9:.2f}" for count in card.parameters.values())
    return [
        f"`{card.id}`",
        card.pipeline_name.removesuffix("Pipeline"),
        ", ".join(_TASKS[task] for task in card.tasks),
        f"{default.width}x{default.height}",
        str(default.num_inference_steps),
        counts or "–",
        card.licence,
    ]


def plan_table(cards: Iterable[ModelCard]) -> str:
    """How each model is held on devices of some sizes; only those whose cards tell their sizes."""
    rows = [
        ["id", *(f"{size} GB" for size in _GIGABYTES)],
        ["---"] * (1 + len(_GIGABYTES)),
        *([f"`{card.id}`", *map(_plans(card), _GIGABYTES)] for card in cards if card.parameters),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plans(card: ModelCard) -> Callable[[int], str]:
    ways = plans_for(card, "bfloat16")

    def cell(gigabytes: int) -> str:
        plan = choose(ways, Room(gigabytes * 10**9, _RAM * 10**9))
        if plan is None:
            return "–"
        bits = ", int8" if plan.quantised else ""
        tiles = ", tiles" if plan.tiled else ""
        return f"{_WORDS[plan.residency]}{bits}{tiles} {plan.vram / 1e9:.1f}"

    return cell


def page_with(cards: Iterable[ModelCard]) -> str:
    """The page as it should be."""
    known = list(cards)
    tables = {"models": table(known), "plans": plan_table(known)}
    text = PAGE.read_text("utf-8")
    return _PLACE.sub(lambda found: found[1] + tables[found[2]] + found[3], text)


if __name__ == "__main__":
    PAGE.write_text(page_with(load_cards(ROOT / "config" / "models").values()), "utf-8")
