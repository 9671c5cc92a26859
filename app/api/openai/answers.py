"""What clients of the Images API get back: JSON bodies and event streams."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
import pybase64
from litestar import Request

from app.api._http import envelope_of
from app.api._jobs import error_in, events_of
from app.api._streams import sse
from app.domain.events import (
    Expired,
    Failed,
    ImageReady,
    JobCancelled,
    NumberedEvent,
    Progressed,
    Queued,
    Succeeded,
)
from app.domain.job import Job
from app.service import ImageService

Operation = Literal["image_generation", "image_edit"]

_PATCH = 16
"""Pixels of a side that count as one image token: a 2 x 2 patch of latents of an 8x autoencoder."""


class Image(msgspec.Struct, omit_defaults=True):
    seed: int
    revised_prompt: str | None = None
    b64_json: msgspec.Raw | None = None
    url: str | None = None


def settings_of(job: Job, quality: str | None) -> dict[str, Any]:
    """What was really drawn; OpenAI's types want concrete words here, never "auto"."""
    request = job.request
    return {
        "size": "{}x{}".format(*request.picture_sides),
        "output_format": request.output_format,
        "background": "opaque",
        "quality": quality if quality in ("low", "medium", "high") else "medium",
    }


def usage_of(job: Job, images: int, seconds: float | None = None) -> dict[str, Any]:
    """Tokens of the prompt as the text encoder counts them, and pictures as patches of 16 x 16; of an
    ended job also the `seconds` that a device worked for it."""
    request = job.request
    patches = (request.width // _PATCH) * (request.height // _PATCH)
    pictures = 0 if request.task == "text2image" else patches
    inputs, outputs = job.prompt_tokens + pictures, patches * images
    return {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "total_tokens": inputs + outputs,
        "input_tokens_details": {"image_tokens": pictures, "text_tokens": job.prompt_tokens},
        **({} if seconds is None else {"gpu_seconds": round(seconds, 3)}),
    }


async def whole_answer(
    request: Request[Any, Any, Any],
    service: ImageService,
    job: Job,
    *,
    url: bool,
    quality: str | None,
) -> bytes:
    """The JSON body of an ended job."""
    body = {
        "created": int(job.created),
        "data": await images_of(request, service, job, url=url),
        **settings_of(job, quality),
        "usage": usage_of(job, job.request.n, service.reception.seconds_of(job.id)),
        "model": job.request.model,
        "requested_model": job.request.asked,
        "job_id": job.id,
        **service.preset_of(job.request),
    }
    return msgspec.json.encode(body)


async def images_of(
    request: Request[Any, Any, Any], service: ImageService, job: Job, *, url: bool
) -> list[Image]:
    images = []
    revised = revised_prompt(job)
    for index in sorted(job.images):
        image = job.images[index]
        if url:
            address = f"{str(request.base_url).rstrip('/')}{service.archive.link(image.image_id)}"
            images.append(Image(image.seed, revised, url=address))
        else:
            stored = await service.image(image.image_id)
            images.append(Image(image.seed, revised, b64_json=b64(stored.data)))
    return images


def revised_prompt(job: Job) -> str | None:
    """What was drawn, if a style put words around what was asked for."""
    return job.request.prompt if job.request.styled else None


def b64(data: bytes) -> msgspec.Raw:
    """A JSON string spliced from bytes: base64 needs no escaping, and no text is ever made of it."""
    return msgspec.Raw(b'"' + pybase64.b64encode(data) + b'"')


async def openai_frames(
    service: ImageService,
    job: Job,
    operation: Operation,
    *,
    quality: str | None,
    progress: bool,
) -> AsyncGenerator[bytes, None]:
    """OpenAI's event stream: partial images, then `completed` for each image, or `error`.

    No frame carries an `id:`: the Python SDK would choke on the next comment. Progress rides inside the
    partial images; events of its own are sent only when `progress` asks for them.
    """
    partials: Counter[int] = Counter()
    complete: set[int] = set()  # a second attempt draws the same pictures again
    settings = settings_of(job, quality)
    async for numbered in events_of(service, job):
        event = numbered.event
        match event:
            case Progressed(phase="complete"):
                pass  # the last event is `completed`
            case Queued() | Progressed(preview=None) if progress:
                kind = f"{operation}.progress"
                yield sse(kind, {"type": kind, "job_id": job.id, **told(numbered)})
            case Progressed(preview=bytes() as preview, image_index=int() as index):
                number = partials[index]
                partials[index] += 1
                kind = f"{operation}.partial_image"
                body = {
                    "type": kind,
                    "partial_image_index": number,
                    "b64_json": b64(preview),
                    "created_at": int(time.time()),
                    **settings,
                    **told(numbered),
                    "queue_position": 0,
                    "image_index": index,
                    "seed": job.request.seed + index,
                    "job_id": job.id,
                }
                yield sse(kind, body)
            case ImageReady(index, image_id, seed) if index not in complete:
                complete.add(index)
                stored = await service.image(image_id)
                kind = f"{operation}.completed"
                body = {
                    "type": kind,
                    "b64_json": b64(stored.data),
                    "created_at": int(time.time()),
                    **settings,
                    "usage": usage_of(job, 1),
                    "seed": seed,
                    "image_index": index,
                    "job_id": job.id,
                }
                if revised := revised_prompt(job):
                    body["revised_prompt"] = revised
                yield sse(kind, body)
            case Failed() | Expired() | JobCancelled():
                yield sse("error", {"type": "error", **envelope_of(error_in(event))})


def told(numbered: NumberedEvent) -> dict[str, Any]:
    """Progress, waiting included, under the names that every stream of ours uses."""
    event = numbered.event
    if isinstance(event, Queued):
        return {
            "phase": "loading_model" if event.progress else "initializing",
            "progress": event.progress,
            "message": f"Waiting in the queue, position {event.position} ({event.reason})",
            "eta_seconds": event.eta_seconds,
            "queue_position": event.position,
            "reason": event.reason,
            "timestamp": numbered.timestamp,
        }
    given: dict[str, Any] = msgspec.to_builtins(event, builtin_types=(bytes,))
    for name in ("type", "preview", "image_index"):
        del given[name]
    return {**given, "timestamp": numbered.timestamp}


async def progress_frames(
    request: Request[Any, Any, Any],
    service: ImageService,
    job: Job,
    *,
    url: bool,
    quality: str | None,
) -> AsyncGenerator[bytes, None]:
    """`progress`, then `done` with the pictures, or `error`."""
    async for numbered in events_of(service, job):
        common = {"job_id": job.id, "timestamp": numbered.timestamp}
        match event := numbered.event:
            case Queued() | Progressed():
                yield sse("progress", {**told(numbered), **common})
            case Succeeded():
                body = {
                    "done": True,
                    "created": int(job.created),
                    "data": await images_of(request, service, job, url=url),
                    **settings_of(job, quality),
                    "usage": usage_of(job, job.request.n, service.reception.seconds_of(job.id)),
                    **common,
                }
                yield sse("done", body)
            case Failed() | Expired() | JobCancelled():
                error = error_in(event)
                failed = {"phase": "error", "message": error.message}
                yield sse("error", {**envelope_of(error), **failed, **common})
