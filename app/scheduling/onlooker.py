"""Who looks on while jobs are drawn, and learns what their events do not tell."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.events import Phase
from app.workers.base import PoolEvent, SlotInfo


class Onlooker:
    """Does nothing; who wants to know overrides what it wants to know. Nothing may raise."""

    def stepped(self, model: str, batch: int) -> None:
        """A step of a picture of `model` is done, whose forward `batch` pictures shared."""

    def drew(self, model: str, seconds: Mapping[Phase, float]) -> None:
        """A job's pictures are drawn; seconds of each phase, net of what others took."""

    def changed(self, event: PoolEvent, slot: SlotInfo) -> None:
        """A worker came, was lost, or holds other models than before."""
