"""Which plan of memory a model is loaded by. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.errors import OutOfMemory
from app.domain.memory_plan import BYTES, Needs, Plan, Room, Weights, choose, plans, refusal
from app.domain.model_card import ModelCard
from app.engines.weight_bytes import precision_for, weight_counts

_SMALL = 500_000_000
"""Bytes of weights below which no plan is made: there is nothing to be gained."""


def plans_for(card: ModelCard, floats: Weights) -> list[Plan]:
    """All ways to draw pictures of the model's default size, the best first; none where nothing tells
    what it is made of."""
    return _plans(card, weight_counts(card), floats)


def _plans(card: ModelCard, parts: Mapping[str, int], floats: Weights) -> list[Plan]:
    if not parts:
        return []
    size = card.defaults
    return plans(Needs(parts), width=size.width, height=size.height, floats=floats, quantised=())


def plan_for(card: ModelCard, device: str, room: Room) -> Plan | None:
    """The best plan that fits into the `room`; None where the model just stays whole: on devices whose
    memory is the machine's own, or of unknown size; and where it is small, or of unknown size itself.

    Raises OutOfMemory, with what would fit.
    """
    if not room.vram or not device.startswith(("cuda", "xpu")):
        return None
    floats = precision_for(card, device)
    parts = weight_counts(card)
    if sum(parts.values()) * BYTES[floats] < _SMALL:
        return None
    ways = _plans(card, parts, floats)
    plan = choose(ways, room)
    if plan is None:
        raise OutOfMemory(f"Model {card.id} does not fit. {refusal(ways, room)}")
    return plan


def plan_told(card: ModelCard, device: str, room: Room) -> str | None:
    """The plan in words, or why there is none; None where no plan is needed."""
    try:
        plan = plan_for(card, device, room)
    except OutOfMemory as error:
        return error.message
    return plan.sentence if plan else None


def bytes_needed(plan: Plan | None, whole: int) -> int:
    """Bytes on the device that count for a model: its weights, or what a plan for less comes to."""
    return whole if plan is None or plan.residency == "resident" else plan.vram
