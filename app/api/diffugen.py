"""The `/generate` routes of DiffuGen and their streams, word for word as its clients read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pybase64
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from app.api._fields import PictureFields
from app.api._http import DoorSettings, require_json, wait_for
from app.api._jobs import events_of
from app.api._owner import owner_of
from app.api._schema import EVENTS, SUBMITS, WAITS, answers
from app.api._shapes import DiffuGenAnswer
from app.api._streams import EventStream, sse
from app.domain.events import (
    Expired,
    Failed,
    JobCancelled,
    NumberedEvent,
    Progressed,
    Queued,
    Succeeded,
)
from app.domain.job import Job
from app.service import ImageService


class DiffuGenBody(PictureFields):
    """`prompt, model, width, height, steps, cfg_scale, sampling_method, negative_prompt, seed …`"""


async def _generate(
    data: DiffuGenBody,
    request: Request[Any, Any, Any],
    service: ImageService,
    owner: str,
    family: str | None,
) -> dict[str, Any]:
    job = await service.submit(data.to_arguments(), owner=owner, door="diffugen", family=family)
    await wait_for(request, service, job)
    return {"success": True, **await _result(service, job)}


async def _stream(
    data: DiffuGenBody, service: ImageService, owner: str, heartbeat: float, family: str | None
) -> EventStream:
    job = await service.submit(data.to_arguments(), owner=owner, door="diffugen", family=family)
    service.attend(job)
    frames = _frames(service, job)
    return EventStream(frames, heartbeat=heartbeat, on_close=lambda: service.leave(job))


async def _result(service: ImageService, job: Job) -> dict[str, Any]:
    request = job.request
    images = []
    for index in sorted(job.images):
        image = job.images[index]
        stored = await service.image(image.image_id)
        images.append(
            {
                "b64_json": pybase64.b64encode(stored.data).decode("ascii"),
                "seed": image.seed,
                "id": image.image_id,
                "url": f"/images/{image.image_id}",
                "format": request.output_format,
            }
        )
    return {
        "job_id": job.id,
        "images": images,
        "model": request.model,
        "requested_model": request.asked,
        "parameters": {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "steps": request.num_inference_steps,
            "cfg_scale": request.guidance_scale,
            "sampling_method": request.sampler,
            "seed": request.seed,
        },
    }


async def _frames(service: ImageService, job: Job) -> AsyncGenerator[bytes, None]:
    async for numbered in events_of(service, job):
        match numbered.event:
            case Progressed(phase="generating", step=None):
                pass  # the first that DiffuGen tells of this phase is step 1
            case Queued() | Progressed():
                yield sse("progress", _progress(numbered, job))
            case Succeeded():
                yield sse("done", {"done": True, **await _result(service, job)})
            case Failed(code, message) | Expired(code, message):
                error = {"error": message, "phase": "error", "message": message, "code": code}
                yield sse("error", {**error, "job_id": job.id})
            case JobCancelled():
                text = "The job was cancelled"
                error = {"error": text, "phase": "error", "message": text, "code": "cancelled"}
                yield sse("error", {**error, "job_id": job.id})


def _progress(numbered: NumberedEvent, job: Job) -> dict[str, Any]:
    """DiffuGen has no phase for waiting: it shows as `initializing` at 0 percent."""
    event = numbered.event
    if isinstance(event, Queued):
        told: dict[str, Any] = {
            "phase": "loading_model" if event.progress else "initializing",
            "progress": event.progress,
            "message": f"Waiting in the queue, position {event.position} ({event.reason})",
            "eta_seconds": event.eta_seconds,
            "queue_position": event.position,
            "reason": event.reason,
        }
    else:
        given = msgspec.to_builtins(event)
        told = {
            key: value
            for key, value in given.items()
            if key not in ("type", "preview", "image_index") and value is not None
        }
    return {**told, "timestamp": numbered.timestamp, "job_id": job.id}


def _routes(path: str, family: str | None) -> list[HTTPRouteHandler]:
    """A route and its `/stream` twin, for any model or for those of one family."""

    @post(
        path,
        status_code=200,
        guards=[require_json],
        name=path,
        **answers(DiffuGenAnswer, *WAITS, access="generate"),
    )
    async def generate(
        data: JSONBody[DiffuGenBody],
        request: Request[Any, Any, Any],
        service: NamedDependency[ImageService],
        doors: NamedDependency[DoorSettings],
    ) -> dict[str, Any]:
        """Draw pictures with any model, or with one of the family that the route is named for."""
        return await _generate(data, request, service, owner_of(request, doors), family)

    @post(
        f"{path}/stream",
        status_code=200,
        guards=[require_json],
        name=f"{path}/stream",
        **answers(None, *SUBMITS, also=EVENTS, access="generate"),
    )
    async def stream(
        data: JSONBody[DiffuGenBody],
        request: Request[Any, Any, Any],
        service: NamedDependency[ImageService],
        doors: NamedDependency[DoorSettings],
    ) -> EventStream:
        """The same, with an event for each step; then `done` with the pictures, or `error`."""
        owner = owner_of(request, doors)
        return await _stream(data, service, owner, doors.heartbeat, family)

    return [generate, stream]


HANDLERS = [
    *_routes("/generate", None),
    *_routes("/generate/stable", "stable_diffusion"),
    *_routes("/generate/flux", "flux"),
]
