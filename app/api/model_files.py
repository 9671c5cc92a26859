"""Models: which files of them are here or on their way, and which workers hold them.

Control networks have such files, too.

Ids may hold a slash, as such or as %2F.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api._models import files_shown, model_shown
from app.api._schema import answers
from app.api._shapes import AllModels, ModelFilesShown, ModelWithFiles, Removed
from app.domain.model_card import ModelCard
from app.service import ImageService


class ModelHeld(msgspec.Struct):
    """The `workers` that hold a model now, on a device or in their memory; `held` if any does."""

    id: str
    held: bool
    workers: list[str]


def _paths(end: str = "") -> list[str]:
    return [f"/models/{{model_id:str}}{end}", f"/models/{{owner:str}}/{{model_id:str}}{end}"]


@get("/models", **answers(AllModels, access="any"))
async def list_models(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All models that have a card, with what they can do and how their files stand."""
    return {"object": "list", "data": [_both(service, card) for card in service.models()]}


@get(_paths(), **answers(ModelWithFiles, 404, access="any"))
async def get_model(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, Any]:
    """One model, with what it can do and how its files stand."""
    return _both(service, _card(service, owner, model_id))


@get(_paths("/status"), **answers(ModelFilesShown, 404, access="any"))
async def status(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, Any]:
    """How the files of a model stand, each of them while they are fetched."""
    return files_shown(service, _files(service, owner, model_id))


@post(
    _paths("/pull"), status_code=202, **answers(ModelFilesShown, 404, status=202, access="models")
)
async def pull(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, Any]:
    """Fetch what is missing of a model, and go on until all of it is here. Answers at once."""
    card = _files(service, owner, model_id)
    service.shelf.pull(card.id)
    return files_shown(service, card)


@delete(_paths("/files"), status_code=200, **answers(Removed, 400, 404, access="models"))
async def remove(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, int]:
    """Remove the files that were fetched for a model, but for those that others need."""
    card = _files(service, owner, model_id)
    return {"freed": await asyncio.to_thread(service.shelf.remove, card.id)}


@post(_paths("/load"), status_code=200, **answers(ModelHeld, 404, 503, 504, access="models"))
async def load(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, Any]:
    """Have a worker hold the model, and fetch its files first where that is allowed; answers once it is
    there. Calls that name no model get what they got before."""
    card = _card(service, owner, model_id)
    await service.load(card)
    return _held(service, card)


@post(_paths("/unload"), status_code=200, **answers(ModelHeld, 404, access="models"))
async def unload(
    model_id: FromPath[str], service: NamedDependency[ImageService], owner: FromPath[str] = ""
) -> dict[str, Any]:
    """Have all workers let go of the model. One that draws with it does so when it is done, unless the
    next job wants it by then; the answer tells which still have it."""
    card = _card(service, owner, model_id)
    await service.unload(card)
    return _held(service, card)


def _held(service: ImageService, card: ModelCard) -> dict[str, Any]:
    slots = service.slots()
    workers = [slot.id for slot in slots if card.id in (*slot.models, *slot.parked)]
    return {"id": card.id, "held": bool(workers), "workers": workers}


def _card(service: ImageService, owner: str, model_id: str) -> ModelCard:
    return service.model(f"{owner}/{model_id}" if owner else model_id)


def _files(service: ImageService, owner: str, model_id: str) -> ModelCard:
    """The same, or the control network of this id."""
    control = None if owner else service.controls.get(model_id)
    return control.files if control else _card(service, owner, model_id)


def _both(service: ImageService, card: ModelCard) -> dict[str, Any]:
    files = files_shown(service, card)
    told = {name: files[name] for name in ("state", "bytes_done", "bytes_total", "reason")}
    return {**model_shown(service, card), **told}


HANDLERS = [list_models, get_model, status, pull, remove, load, unload]
