"""The styles that a request may ask for."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import get
from litestar.di import NamedDependency

from app.api._schema import answers
from app.service import ImageService


class StyleShown(msgspec.Struct):
    id: str
    title: str
    aliases: list[str]
    prefix: str
    suffix: str
    negative: str


class StyleList(msgspec.Struct):
    styles: list[StyleShown]


@get("/styles", **answers(StyleList, access="any"))
async def list_styles(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All styles, with the words that each puts around a prompt."""
    shown = [{"id": name, **style.model_dump()} for name, style in service.styles.items()]
    return {"styles": shown}


HANDLERS = [list_styles]
