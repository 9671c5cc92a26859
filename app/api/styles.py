"""The styles that a request may ask for."""

from __future__ import annotations

from typing import Any

from litestar import get
from litestar.di import NamedDependency

from app.api._schema import answers
from app.api._shapes import StyleList
from app.service import ImageService


@get("/styles", **answers(StyleList, access="any"))
async def list_styles(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All styles, with the words that each puts around a prompt."""
    shown = [{"id": name, **style.model_dump()} for name, style in service.styles.items()]
    return {"styles": shown}


HANDLERS = [list_styles]
