"""Enlarging pictures: Easel's own route, beside OpenAI's and with their answers."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from msgspec.structs import replace
from pydantic import ValidationError

from app.api._fields import PictureFields, refused
from app.api._http import DoorSettings, wait_for
from app.api._owner import owner_of
from app.api._pictures import from_base64, upright_size
from app.api._schema import JOB_HEADERS, WAITS, answers
from app.api._shapes import Pictures, UpscalerList
from app.api.openai.answers import whole_answer
from app.api.openai.bodies import Upload
from app.domain.errors import InvalidRequest, UnknownModel
from app.domain.request import Arguments
from app.domain.upscaling import LANCZOS
from app.service import ImageService

_PREFIXES = ("/v1", "/openai/v1", "")


class UpscaleBody(PictureFields):
    """`image`, `scale` (2 or 4), `model` (an upscaler), and how the answer is to be."""

    prompt: str = ""
    image: str | None = None
    response_format: str | None = None


@post(
    [f"{prefix}/images/upscale" for prefix in _PREFIXES],
    status_code=200,
    **answers(Pictures, *WAITS, headers=JOB_HEADERS, form=UpscaleBody, access="generate"),
)
async def upscale(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> Response[bytes]:
    """Make a picture larger that is sent: multipart, or JSON with `image` in base64."""
    body, image = await _read(request)
    job = await service.submit(
        _arguments(service, body, image), owner=owner_of(request, doors), door="openai"
    )
    await wait_for(request, service, job)
    url = body.response_format == "url"
    answer = await whole_answer(request, service, job, url=url, quality=None)
    headers = {"x-easel-job": job.id}
    return Response(answer, media_type="application/json", headers=headers)


@get("/v1/images/upscalers", **answers(UpscalerList, access="any"))
async def list_upscalers(service: NamedDependency[ImageService]) -> dict[str, Any]:
    """What `upscaler` may be, and by how much each enlarges."""
    known = service.upscalers.items()
    return {"upscalers": [{"id": name, "scales": one.scales} for name, one in known]}


async def _read(request: Request[Any, Any, Any]) -> tuple[UpscaleBody, bytes]:
    """The fields and the picture, whichever way they came. Raises InvalidRequest."""
    if request.content_type[0] != "application/json":
        form = await Upload.read(request)
        if form.mask is not None:
            raise InvalidRequest("There is nothing to mask here.", param="mask")
        if form.control is not None:
            raise InvalidRequest("An upscaler takes no control.", param="control")
        return form.body(UpscaleBody), form.images[0]
    given = await request.json()
    if not isinstance(given, dict):
        raise HTTPException(status_code=400)
    try:
        body = UpscaleBody.model_validate(given)
    except ValidationError as error:
        raise refused(error) from error
    if body.image is None:
        raise InvalidRequest("Send the picture in base64.", param="image")
    return body, from_base64(body.image, "image")


def _arguments(service: ImageService, body: UpscaleBody, image: bytes) -> Arguments:
    model = body.model or LANCZOS
    if model not in service.upscalers:
        known = ", ".join(service.upscalers)
        raise UnknownModel(f"This upscaler does not exist here. Upscalers: {known}.", param="model")
    size = upright_size(image, "image")
    return replace(body.to_arguments(), model=model, image=image, image_size=size)


UPSCALES = [upscale]
