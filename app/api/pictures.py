"""Finished pictures, and what was learnt from making them."""

from __future__ import annotations

import time
from typing import Annotated, Any

from litestar import Request, Response, delete, get, put
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.params import FromPath, FromQuery, QueryParameter

from app.api._access import caller_of
from app.api._owner import check_picture
from app.api._schema import PICTURE, answers
from app.api._shapes import Nothing
from app.report import told
from app.service import ImageService
from app.store.pictures import StoredImage
from app.store.statistics import Report

_TABLES = {"text/plain": Schema(type=OpenAPIType.STRING, description="The same for people.")}
AnyRequest = Request[Any, Any, Any]
Days = Annotated[float, QueryParameter(gt=0, le=36_500)]


@get("/images/{image_id:str}", **answers(None, 400, 404, 503, also=PICTURE, access="link"))
async def get_image(
    image_id: FromPath[str],
    request: AnyRequest,
    service: NamedDependency[ImageService],
    expires: FromQuery[int] = 0,
    signature: FromQuery[str | None] = None,
) -> Response[bytes]:
    """A finished picture. A link with a `signature` is good until it `expires`, and needs no key."""
    if signature is not None or expires:
        service.archive.check_link(image_id, expires, signature or "")
    else:
        await check_picture(request, service, image_id)
    return _picture(await service.image(image_id))


@get("/images/{image_id:str}/thumbnail", **answers(None, 404, 503, also=PICTURE, access="generate"))
async def get_thumbnail(
    image_id: FromPath[str], request: AnyRequest, service: NamedDependency[ImageService]
) -> Response[bytes]:
    """A small version of a large picture; a small picture itself."""
    await check_picture(request, service, image_id)
    return _picture(await service.archive.thumbnail(image_id))


@put(
    "/images/{image_id:str}/favourite",
    status_code=200,
    **answers(Nothing, 404, 503, access="generate"),
)
async def mark(
    image_id: FromPath[str], request: AnyRequest, service: NamedDependency[ImageService]
) -> dict[str, str]:
    """Make it a favourite: no limit of the history removes it."""
    await check_picture(request, service, image_id)
    await service.archive.favourite(image_id)
    return {}


@delete(
    "/images/{image_id:str}/favourite",
    status_code=200,
    **answers(Nothing, 404, 503, access="generate"),
)
async def unmark(
    image_id: FromPath[str], request: AnyRequest, service: NamedDependency[ImageService]
) -> dict[str, str]:
    """No favourite any more."""
    await check_picture(request, service, image_id)
    await service.archive.favourite(image_id, on=False)
    return {}


@delete("/images/{image_id:str}", status_code=200, **answers(Nothing, 404, 503, access="generate"))
async def remove(
    image_id: FromPath[str], request: AnyRequest, service: NamedDependency[ImageService]
) -> dict[str, str]:
    """Remove one picture; its job stays."""
    await check_picture(request, service, image_id)
    await service.archive.delete_image(image_id)
    return {}


@get("/stats", **answers(Report, 400, 503, also=_TABLES, access="generate"))
async def stats(
    request: AnyRequest,
    service: NamedDependency[ImageService],
    days: Days = 30.0,
    owner: Annotated[str | None, QueryParameter(max_length=256)] = None,
) -> Response[Any]:
    """How long pictures took by model and size, how jobs ended, how long they waited, and who asked,
    of the last `days`; of the caller's own jobs, or everybody's for who may see them. JSON, or tables
    of plain text for a browser and who else asks for text."""
    caller = caller_of(request)
    if not caller.everyone:
        owner = caller.owner
    report = await service.archive.report(since=time.time() - days * 86_400, owner=owner)
    if request.headers.get("accept", "").startswith("text/"):
        return Response(told(report), media_type="text/plain")
    return Response(report, media_type="application/json")


def _picture(stored: StoredImage) -> Response[bytes]:
    return Response(
        stored.data,
        media_type=stored.media_type,
        headers={
            "cache-control": "private, max-age=31536000, immutable",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox; default-src 'none'",
        },
    )


HANDLERS = [get_image, get_thumbnail, mark, unmark, remove, stats]
