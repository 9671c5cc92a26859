"""The LoRAs that a request may name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api._lora_shapes import LoraList, LoraShape
from app.api._schema import answers
from app.service import ImageService


@get("/loras", **answers(LoraList, access="any"))
async def list_loras(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """All LoRAs: those in the folder now, and those that may be fetched."""
    shown = await asyncio.to_thread(service.loras.shown)  # headers are read of those that are new
    return {"loras": [msgspec.structs.asdict(one) for one in shown]}


@post(
    "/loras/{name:str}/pull",
    status_code=202,
    **answers(LoraShape, 404, status=202, access="models"),
)
async def pull_lora(name: FromPath[str], service: NamedDependency[ImageService]) -> dict[str, Any]:
    """Fetch a LoRA that is not here yet. Answers at once."""
    return msgspec.structs.asdict(service.loras.pull(name))


HANDLERS = [list_loras, pull_lora]
