"""Blocks of pictures: so many drawn by a server for so many clients, or by the raw pipeline in a row.

Both arms of a comparison draw the same wishes, so their pixels can be compared: those that the raw
pipeline drew are remembered by seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.domain.model_card import ModelCard
from app.engines.image_codec import Pixels
from bench.load import Plan, Shot, fire
from bench.raw import RawPipeline
from bench.wishes import Wish, farthest, pixels_of, pixels_of_answer


class Blocks:
    """Two arms that draw the same pictures of one model, `size` in a block.

    `alone` and `shared` collect, for each picture of the server, how far its pixels are from the stock
    pipeline's at most: with one client, and with several. `body` puts a wish into the server's words.
    """

    def __init__(
        self,
        card: ModelCard,
        raw: RawPipeline,
        size: int,
        body: Callable[[Wish], dict[str, Any]] = Wish.body,
    ) -> None:
        self._card, self._raw, self._size, self._body = card, raw, size, body
        self._stock: dict[int, Pixels] = {}
        self._waiting: list[tuple[int, Pixels, bool]] = []
        self._next = {"raw": 0, "server": 0}
        self.alone: list[int] = []
        self.shared: list[int] = []
        self.doubts: set[str] = set()

    def raw(self) -> float:
        """Seconds for a picture: only the pipeline's own, from the call to the JSON text."""
        seconds = 0.0
        for wish in self._wishes("raw"):
            took, png = self._raw.draw(wish.arguments())
            self._stock[wish.seed] = pixels_of(png)
            seconds += took
        self._compare()
        return seconds / self._size

    def server(self, port: int, clients: int) -> float:
        """Seconds for a picture: from the first request to the last answer, through a socket."""
        wishes = self._wishes("server")
        with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
            shots = [Shot(self._body(wish), keep=True) for wish in wishes]
            measured = fire(Plan(port, shots, clients, folder=folder))
            if measured.doubts:
                self.doubts.add(measured.doubts)
            for number, wish in enumerate(wishes):
                if measured.outcomes[number].status != 200:
                    raise RuntimeError(f"no picture: status {measured.outcomes[number].status}")
                picture = pixels_of_answer((Path(folder) / str(number)).read_bytes())
                self._waiting.append((wish.seed, picture, clients > 1))
        self._compare()
        return measured.wall / self._size

    def warm_up(self, port: int, clients: int) -> None:
        """As many pictures at once as there are clients; nothing is measured. Prompts of their own."""
        shots = [Shot(self._body(Wish(self._card, 200 + number))) for number in range(clients)]
        fire(Plan(port, shots, clients))

    def _wishes(self, arm: str) -> Sequence[Wish]:
        """The next block: the n-th of one arm holds the same as the n-th of the other."""
        first = self._next[arm]
        self._next[arm] += self._size
        return [Wish(self._card, first + number) for number in range(self._size)]

    def level(self) -> None:
        """Let both arms go on from the same picture."""
        self._next = dict.fromkeys(self._next, max(self._next.values()))

    def _compare(self) -> None:
        left = []
        for seed, picture, shared in self._waiting:
            if seed not in self._stock:
                left.append((seed, picture, shared))
                continue
            off = farthest(picture, self._stock[seed])
            (self.shared if shared else self.alone).append(off)
        self._waiting = left


def told(doubts: set[str]) -> str:
    return f" (but {'; '.join(sorted(doubts))})" if doubts else ""
