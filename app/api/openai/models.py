"""The models, as OpenAI lists them, and what each can do."""

from __future__ import annotations

from typing import Any

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api._models import at_hand, model_shown
from app.api._schema import answers
from app.api._shapes import ModelList, ModelShown
from app.service import ImageService

_PREFIXES = ("/v1", "/openai/v1")
"""Without one, the same is told together with the models' files: see `model_files.py`."""


@get([f"{prefix}/models" for prefix in _PREFIXES], **answers(ModelList, access="any"))
async def list_models(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """The models that can be drawn with at once, or soon: those on this machine or on their way."""
    cards = [card for card in service.models() if at_hand(service.shelf.state(card.id))]
    return {"object": "list", "data": [model_shown(service, card) for card in cards]}


@get(
    [f"{prefix}/models/{{model_id:path}}" for prefix in _PREFIXES],
    **answers(ModelShown, 404, access="any"),
)
async def get_model(
    model_id: FromPath[str], service: NamedDependency[ImageService]
) -> dict[str, Any]:
    """One model; ids with slashes may come as such or as %2F. Litestar adds a slash in front."""
    return model_shown(service, service.model(model_id.strip("/") or "/"))


HANDLERS = [list_models, get_model]
