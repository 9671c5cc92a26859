"""Other servers of the same pipelines, for one client and for eight: pictures a second.

The server, a tutorial's (FastAPI, Pillow, base64, a lock) and LitServe with request batching draw the
same pictures, all with the same settings, which is LitServe's best case; so does Xinference, where it
is installed (`bench/reference/xinference.py`). One server runs at a time: two would share the cores
even when idle. Each is compared with a raw loop in turns (A, B, B, A).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from app.domain.model_card import ModelCard
from bench.blocks import Blocks, told
from bench.reference.serving import reference
from bench.reference.xinference import PROGRAM, body, xinference
from bench.server import BUNDLED, serving
from bench.stats import Row, in_turns, rates
from bench.wishes import Wish, bundled, raw_pipeline

_MODELS = ("sketch", "sketch-flux")
_XINFERENCE = "Xinference"


def run(*, quick: bool) -> tuple[list[Row], bool]:
    cards = bundled()
    rows: list[Row] = []
    for name in _MODELS[: 1 if quick else None]:
        card = cards[name]
        arms: dict[str, Callable[[], AbstractContextManager[int]]] = {
            "server": partial(serving, {**BUNDLED, "EASEL_PRELOAD": f'["{name}"]'}),
            "tutorial": partial(reference, "tutorial", [card]),
            "LitServe, batches of 8": partial(reference, "batching", [card]),
        }
        if PROGRAM:
            arms[_XINFERENCE] = partial(xinference, card)
        for arm, start in arms.items():
            with start() as port:
                rows += _arm(card, arm, port, quick=quick)
    return rows, True


def _arm(card: ModelCard, arm: str, port: int, *, quick: bool) -> list[Row]:
    rows = []
    with raw_pipeline(card) as raw:
        words = body if arm == _XINFERENCE else Wish.body
        blocks = Blocks(card, raw, 8 if quick else 16, words)
        blocks.raw()
        for clients in (1, 8):
            blocks.warm_up(port, clients)
            blocks.level()
            compared = in_turns(
                partial(blocks.server, port, clients), blocks.raw, 1 if quick else 2
            )
            what = f"{card.id}, {arm}, clients: {clients}; / raw loop"
            rows.append(Row("peers", what, rates(compared) + told(blocks.doubts)))
            blocks.doubts.clear()
        off = max([*blocks.alone, *blocks.shared])
        rows.append(Row("peers", f"{card.id}, {arm}: farthest value from stock", f"{off} of 255"))
    return rows
