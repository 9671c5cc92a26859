"""The vision service's routes: one picture for each call, and one stream of messages for all."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from litestar import Request, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody, QueryParameter

import app
from app.api._http import DoorSettings, require_json, wait_for
from app.api._owner import owner_of
from app.api._schema import EVENTS, WAITS, answers
from app.api._shapes import VisionBanner, VisionLoaded, VisionModel, VisionPicture
from app.api._streams import EventStream, sse
from app.api._vision import Desk, Json, Line, VisionBody, answer, model_told

AnyRequest = Request[Any, Any, Any]
AtDesk = NamedDependency[Desk]


@get("/", **answers(VisionBanner, access="public"))
async def banner() -> dict[str, str]:
    """What runs here."""
    return {"service": "vision_service", "version": app.__version__, "status": "running"}


@post(
    "/v1/generate-image",
    status_code=200,
    guards=[require_json],
    **answers(VisionPicture, *WAITS, access="generate"),
)
async def generate_image(
    data: JSONBody[VisionBody],
    request: AnyRequest,
    desk: AtDesk,
    doors: NamedDependency[DoorSettings],
) -> Json:
    """Draw one picture and answer with it in base64."""
    owner = owner_of(request, doors)
    job = await desk.service.submit(data.arguments_at(desk), owner=owner, door="vision")
    await wait_for(request, desk.service, job)
    return await answer(desk.service, job)


@get("/v1/model-info", **answers(VisionModel, access="any"))
async def model_info(desk: AtDesk) -> Json:
    """The model that calls get which name none, and what it is computed on."""
    return model_told(desk)


@post(
    "/v1/load-model", status_code=200, **answers(VisionLoaded, 400, 404, 503, 504, access="models")
)
async def load_model(
    model_name: Annotated[str, QueryParameter(min_length=1, max_length=128)],
    request: AnyRequest,
    desk: AtDesk,
    doors: NamedDependency[DoorSettings],
) -> Json:
    """Load a model, and take it for calls that name none; answers once it is there."""
    card, stands_in = await desk.load(model_name, owner_of(request, doors))
    place = f" in place of {model_name}" if stands_in else ""
    return {"status": "success", "message": f"Model {card.id} loaded{place}", "model": card.id}


@get("/v1/progress-stream", **answers(None, also=EVENTS, access="generate"))
async def progress_stream(
    request: AnyRequest, desk: AtDesk, doors: NamedDependency[DoorSettings]
) -> EventStream:
    """The last 100 messages of the caller's jobs, then each new one when it happens."""
    frames = _frames(desk.line(owner_of(request, doors)))
    return EventStream(frames, heartbeat=doors.heartbeat)


async def _frames(line: Line) -> AsyncGenerator[bytes, None]:
    yield b": the last messages, then new ones as they come\n\n"
    async with contextlib.aclosing(line.follow()) as messages:
        async for told in messages:
            yield sse("message", told)


def door(desk: Desk) -> Router:
    """All routes, around one desk."""
    return Router(
        "/",
        route_handlers=[banner, generate_image, model_info, load_model, progress_stream],
        dependencies={"desk": Provide(lambda: desk, sync_to_thread=False)},
    )
