"""Which plan of memory a model is loaded by. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec

from app.domain.errors import OutOfMemory
from app.domain.memory_plan import BYTES, Needs, Plan, Room, Weights, choose, plans, refusal
from app.domain.model_card import ModelCard
from app.domain.model_source import is_single_file
from app.engines.weight_bytes import precision_for, weight_counts

QUANTISER = "torchao"
"""The package that holds weights in eight bits."""

_EXTRA = "easel[int8]"
"""What brings it."""

_SMALL = 500_000_000
"""Bytes of weights below which no plan is made: there is nothing to be gained."""


def plans_for(card: ModelCard, floats: Weights) -> list[Plan]:
    """All ways to draw pictures of the model's default size, the best first; none where nothing tells
    what it is made of. A card's own wish for smaller weights leaves no others."""
    wished = card.quantization == "int8"
    ways = _ways(card, floats, quantised=wished or (_may_shrink(card) and _quantiser_is_here()))
    return [way for way in ways if way.quantised] or ways if wished else ways


def _ways(card: ModelCard, floats: Weights, *, quantised: bool) -> list[Plan]:
    parts, usual = weight_counts(card), card.defaults
    size = {"width": usual.width, "height": usual.height}
    return plans(Needs(parts), **size, floats=floats, quantised=quantised) if parts else []


def _may_shrink(card: ModelCard) -> bool:
    """Whether smaller weights could help. A single file is read whole before it is quantised: that is
    no help to a machine in need."""
    return card.quantization == "auto" and not is_single_file(card.file or card.source)


def _quantiser_is_here() -> bool:
    return find_spec(QUANTISER) is not None


def plan_for(card: ModelCard, device: str, room: Room) -> Plan | None:
    """The best plan that fits into the `room`; None where the model just stays whole: where it is
    small, or of unknown size; and, if its card wishes for nothing else, on devices whose memory is
    the machine's own, or of unknown size.

    Raises OutOfMemory, with what would fit.
    """
    apart = bool(room.vram) and device.startswith(("cuda", "xpu"))
    if not apart and card.quantization != "int8":
        return None
    floats = precision_for(card, device)
    ways = plans_for(card, floats)
    if not ways or sum(weight_counts(card).values()) * BYTES[floats] < _SMALL:
        return None
    if not apart:
        return ways[0] if ways[0].quantised else None
    plan = choose(ways, room)
    if plan is None:
        why = f"Model {card.id} does not fit. {refusal(ways, room)}"
        if _may_shrink(card) and choose(_ways(card, floats, quantised=True), room) is not None:
            why += f" Weights in eight bits would: install {_EXTRA}."
        raise OutOfMemory(why)
    return plan


def quantised_parts(card: ModelCard, plan: Plan | None) -> frozenset[str]:
    """The parts that this plan holds in eight bits a weight."""
    return Needs(weight_counts(card)).quantisable if plan and plan.quantised else frozenset()


def plan_told(card: ModelCard, device: str, room: Room) -> str | None:
    """The plan in words, or why there is none; None where no plan is needed."""
    try:
        plan = plan_for(card, device, room)
    except OutOfMemory as error:
        return error.message
    return plan.sentence if plan else None


def bytes_needed(plan: Plan | None, whole: int) -> int:
    """Bytes on the device that count for a model of `whole` bytes of weights in full precision: those,
    or what a plan for less comes to."""
    if plan is None or (plan.residency == "resident" and not plan.quantised):
        return whole
    return plan.vram - plan.working if plan.residency == "resident" else plan.vram
