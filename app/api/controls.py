"""The control networks that a request may ask for."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import get
from litestar.di import NamedDependency

from app.api._schema import answers
from app.api._shapes import FilesState
from app.domain.control import ControlCard
from app.service import ImageService


class ControlShown(msgspec.Struct):
    """`pipeline` is the kind of model that it is made for, `models` are those of that kind here."""

    id: str
    aliases: list[str]
    title: str
    licence: str
    shows: str
    pipeline: str
    models: list[str]
    controlnet_conditioning_scale: float
    state: FilesState
    bytes_done: int
    bytes_total: int
    reason: str


class ControlList(msgspec.Struct):
    """What `GET /controls` answers; never made."""

    controls: list[ControlShown]


@get("/controls", **answers(ControlList, access="any"))
async def list_controls(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All control networks, the models that each steers, and how its files stand."""
    return {"controls": [_shown(service, card) for card in service.controls.values()]}


def _shown(service: ImageService, card: ControlCard) -> dict[str, Any]:
    files = service.shelf.state(card.id)
    return {
        "id": card.id,
        "aliases": card.aliases,
        "title": card.title,
        "licence": card.licence,
        "shows": card.shows,
        "pipeline": card.pipeline,
        "models": [model.id for model in service.models() if card.steers(model)],
        "controlnet_conditioning_scale": card.controlnet_conditioning_scale,
        "state": files.state,
        "bytes_done": files.bytes_done,
        "bytes_total": files.bytes_total,
        "reason": files.reason,
    }


HANDLERS = [list_controls]
