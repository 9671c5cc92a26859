"""How models and their files are told, wherever they are."""

from __future__ import annotations

from typing import Any

import msgspec

from app.domain.model_card import ModelCard
from app.model_files.state import ModelFiles
from app.service import ImageService


def model_shown(service: ImageService, card: ModelCard) -> dict[str, Any]:
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


def files_shown(service: ImageService, card: ModelCard) -> dict[str, Any]:
    """How the files stand: bytes, seconds, and why they are not here."""
    told: dict[str, Any] = msgspec.to_builtins(service.shelf.state(card.id))
    return {"id": card.id, **told}


def at_hand(files: ModelFiles) -> bool:
    """Whether the model can be drawn with without a download, or is being downloaded."""
    return files.here or files.state == "downloading"
