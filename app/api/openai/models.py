"""The models, as OpenAI lists them, and what each can do."""

from __future__ import annotations

from typing import Any

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api._schema import answers
from app.api._shapes import ModelList, ModelShown
from app.domain.model_card import ModelCard
from app.service import ImageService

_PREFIXES = ("/v1", "/openai/v1", "")


@get([f"{prefix}/models" for prefix in _PREFIXES], **answers(ModelList))
async def list_models(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All models, with what they can do."""
    return {"object": "list", "data": [_shown(service, card) for card in service.models()]}


@get([f"{prefix}/models/{{model_id:path}}" for prefix in _PREFIXES], **answers(ModelShown, 404))
async def get_model(
    model_id: FromPath[str], service: NamedDependency[ImageService]
) -> dict[str, Any]:
    """One model; ids with slashes may come as such or as %2F. Litestar adds a slash in front."""
    return _shown(service, service.model(model_id.strip("/") or "/"))


def _shown(service: ImageService, card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": 0,
        "owned_by": "easel",
        "title": card.title,
        "family": card.family,
        "pipeline": card.pipeline_name,
        "licence": card.licence,
        "aliases": card.aliases,
        "tasks": card.tasks,
        "samplers": card.samplers,
        "negative_prompt": card.negative_prompt,
        "ignores": card.ignores,
        "parameters": card.parameters,
        "output_formats": ("png", "jpeg", "webp"),
        "transparent_background": False,
        "defaults": card.defaults.model_dump(),
        "limits": card.limits.model_dump(),
        "preset": card.preset,
        "presets": service.presets(card),
    }


HANDLERS = [list_models, get_model]
