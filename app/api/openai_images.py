"""OpenAI's Images API, and the route beside it that streams progress."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
import pybase64
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from pydantic import Field

from app.api._fields import PictureFields
from app.api._http import EventStream, envelope_of, require_json, sse, wait_for
from app.domain import errors
from app.domain.events import Failed, ImageReady, JobCancelled, Progressed, Queued, Succeeded
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.service import ImageService

_PREFIXES = ("/v1", "/openai/v1", "")


class GenerationBody(PictureFields):
    """The body of `POST /v1/images/generations`, with Easel's own fields beside OpenAI's."""

    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None


class _Image(msgspec.Struct, omit_defaults=True):
    seed: int
    b64_json: msgspec.Raw | None = None
    url: str | None = None


@post(
    [f"{prefix}/images/generations" for prefix in _PREFIXES],
    status_code=200,
    guards=[require_json],
)
async def generate(
    data: JSONBody[GenerationBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    heartbeat: NamedDependency[float],
) -> Response[bytes]:
    """Draw pictures; with `stream: true` as server-sent events that OpenAI's SDKs understand."""
    job = service.submit(data.to_arguments(), owner="local", door="openai")
    if data.stream:
        frames = _openai_frames(service, job)
        return EventStream(frames, heartbeat=heartbeat, on_close=lambda: service.cancel(job.id))
    await wait_for(request, service, job)
    body = {
        "created": int(job.created),
        "data": await _images(request, service, job, url=data.response_format == "url"),
        **_settings_of(job),
        "job_id": job.id,
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


@post(
    [f"{prefix}/images/generations/stream" for prefix in _PREFIXES],
    status_code=200,
    guards=[require_json],
)
async def generate_with_progress(
    data: JSONBody[GenerationBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    heartbeat: NamedDependency[float],
) -> EventStream:
    """The same body; events `progress`, then `done` with the pictures, or `error`."""
    job = service.submit(data.to_arguments(), owner="local", door="openai-progress")
    frames = _progress_frames(request, service, job, url=data.response_format == "url")
    return EventStream(frames, heartbeat=heartbeat, on_close=lambda: service.cancel(job.id))


@get([f"{prefix}/models" for prefix in ("/v1", "/openai/v1")])
async def list_models(service: NamedDependency[ImageService]) -> dict[str, Any]:
    return {"object": "list", "data": [_model(card) for card in service.models()]}


@get([f"{prefix}/models/{{model_id:path}}" for prefix in ("/v1", "/openai/v1")])
async def get_model(
    model_id: FromPath[str], service: NamedDependency[ImageService]
) -> dict[str, Any]:
    """One model; ids with slashes may come as such or as %2F. Litestar adds a slash in front."""
    return _model(service.model(model_id.strip("/") or "/"))


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": 0,
        "owned_by": "easel",
        "title": card.title,
        "family": card.family,
        "licence": card.licence,
        "aliases": card.aliases,
        "tasks": card.tasks,
        "samplers": card.samplers,
        "defaults": card.defaults.model_dump(),
        "limits": card.limits.model_dump(),
    }


def _settings_of(job: Job) -> dict[str, Any]:
    """What was really drawn. Text encoders count tokens in the worker; usage of them comes later."""
    return {
        "size": job.request.size,
        "output_format": job.request.output_format,
        "background": "opaque",
        "quality": "high",
        "model": job.request.model,
    }


async def _images(
    request: Request[Any, Any, Any], service: ImageService, job: Job, *, url: bool
) -> list[_Image]:
    images = []
    for index in sorted(job.images):
        image = job.images[index]
        if url:
            address = f"{str(request.base_url).rstrip('/')}/images/{image.image_id}"
            images.append(_Image(image.seed, url=address))
        else:
            images.append(_Image(image.seed, b64_json=await _b64(service, image.image_id)))
    return images


async def _b64(service: ImageService, image_id: str) -> msgspec.Raw:
    """A JSON string spliced from bytes: base64 needs no escaping, and no text is ever made of it."""
    stored = await service.image(image_id)
    return msgspec.Raw(b'"' + pybase64.b64encode(stored.data) + b'"')


async def _openai_frames(service: ImageService, job: Job) -> AsyncGenerator[bytes, None]:
    """OpenAI's event names; never an `id:`; the last event is `completed` or `error`."""
    async for numbered in service.follow(job.id):
        match numbered.event:
            case ImageReady(index, image_id, seed):
                event = "image_generation.completed"
                yield sse(
                    event,
                    {
                        "type": event,
                        "b64_json": await _b64(service, image_id),
                        "created_at": int(time.time()),
                        **_settings_of(job),
                        "usage": _NO_USAGE,
                        "seed": seed,
                        "image_index": index,
                        "job_id": job.id,
                    },
                )
            case Failed(code, message):
                yield sse(
                    "error", {"type": "error", **envelope_of(errors.error_from(code, message))}
                )
            case JobCancelled():
                cancelled = errors.Cancelled("The job was cancelled.")
                yield sse("error", {"type": "error", **envelope_of(cancelled)})


_NO_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


async def _progress_frames(
    request: Request[Any, Any, Any], service: ImageService, job: Job, *, url: bool
) -> AsyncGenerator[bytes, None]:
    async for numbered in service.follow(job.id):
        event = numbered.event
        common = {"job_id": job.id, "timestamp": numbered.timestamp}
        match event:
            case Queued():
                waiting = {
                    "phase": "initializing",
                    "progress": 0.0,
                    "message": f"Waiting in the queue, position {event.position}",
                    "eta_seconds": event.eta_seconds,
                    "queue_position": event.position,
                }
                yield sse("progress", {**waiting, **common})
            case Progressed():
                told = msgspec.to_builtins(event)
                del told["type"], told["preview"]
                yield sse("progress", {**told, **common})
            case Succeeded():
                images = await _images(request, service, job, url=url)
                yield sse(
                    "done",
                    {
                        "done": True,
                        "created": int(job.created),
                        "data": images,
                        **_settings_of(job),
                        **common,
                    },
                )
            case Failed(code, message):
                failed = envelope_of(errors.error_from(code, message))
                yield sse("error", {**failed, "phase": "error", "message": message, **common})
            case JobCancelled():
                failed = envelope_of(errors.Cancelled("The job was cancelled."))
                yield sse("error", {**failed, "phase": "error", "message": "Cancelled", **common})


HANDLERS = [generate, generate_with_progress, list_models, get_model]
