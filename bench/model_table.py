"""The table of models in docs/models.md: `python -m bench.model_table` writes it from the cards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from app.domain.model_card import ModelCard
from app.settings import load_cards

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
_TASKS = {"text2image": "text", "image2image": "edit", "inpaint": "inpaint"}
_PLACE = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)


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


def page_with(cards: Iterable[ModelCard]) -> str:
    """The page as it should be."""
    text = PAGE.read_text("utf-8")
    return _PLACE.sub(lambda found: found[1] + table(cards) + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(page_with(load_cards(ROOT / "config" / "models").values()), "utf-8")
