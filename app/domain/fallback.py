"""Which models draw in the place of one that cannot be loaded."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.model_card import ModelCard


def chain(cards: Mapping[str, ModelCard], model: str) -> tuple[str, ...]:
    """Those that stand in for `model`, the first choice first: each of its fallbacks, followed by
    that one's own.

    Raises ValueError: a fallback has no card, or a model is among those that stand in for it.
    """
    found: dict[str, None] = {}
    _walk(cards, (model,), found)
    return tuple(found)


def _walk(cards: Mapping[str, ModelCard], path: tuple[str, ...], found: dict[str, None]) -> None:
    for name in cards[path[-1]].fallback:
        if name not in cards:
            raise ValueError(f"the fallback {name} of model {path[-1]} has no card")
        if name in path:
            raise ValueError(f"model {name} would be its own fallback")
        found[name] = None
        _walk(cards, (*path, name), found)
