"""Jobs and their events as every door tells them, whatever it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
import pybase64

from app.domain import errors
from app.domain.events import Expired, Failed, JobCancelled, NumberedEvent, Queued
from app.domain.job import Job
from app.domain.request import Arguments
from app.service import ImageService

_leaving: set[asyncio.Task[None]] = set()
"""Who left while a job was made for him; a task that nobody holds may vanish."""


async def attended(service: ImageService, given: Arguments, *, owner: str, door: str) -> Job:
    """A new job that its client attends; `leave` must follow. One who is cancelled while it is made, as
    some doors do with clients that leave, leaves no job behind.

    Raises what `ImageService.submit` raises.
    """
    taking = asyncio.ensure_future(service.submit(given, owner=owner, door=door))
    try:
        job = await asyncio.shield(taking)
    except asyncio.CancelledError:
        leaving = asyncio.create_task(_leave(service, taking))
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)
        raise
    service.attend(job)
    return job


async def _leave(service: ImageService, taking: asyncio.Future[Job]) -> None:
    with suppress(errors.EaselError):
        job = await taking
        service.attend(job)
        await service.leave(job)


async def events_of(service: ImageService, job: Job) -> AsyncIterator[NumberedEvent]:
    """All events of a job, to one that is terminal: a failure, when the server ends before the job."""
    number, now = 0, job.created
    try:
        async for numbered in service.follow(job.id):
            number, now = numbered.number, numbered.timestamp
            yield numbered
    except errors.Unavailable as error:
        yield NumberedEvent(number + 1, now, Failed(error.code, error.message))


def error_in(event: Failed | Expired | JobCancelled) -> errors.EaselError:
    """What a job ended with that did not end well."""
    if isinstance(event, JobCancelled):
        return errors.Cancelled("The job was cancelled.")
    param = event.param if isinstance(event, Failed) else None
    return errors.error_from(event.code, event.message, param)


def error_of(job: Job) -> errors.EaselError | None:
    """What an ended job ended with, if not well."""
    if job.status in ("failed", "expired"):
        return job.error
    return errors.Cancelled("The job was cancelled.") if job.status == "cancelled" else None


def told(
    job_id: str, numbered: NumberedEvent, *, previews: bool = True
) -> tuple[str, dict[str, Any]]:
    """An event's name, and the rest of it in JSON: a preview in base64, where wanted."""
    data: dict[str, Any] = msgspec.to_builtins(numbered.event, builtin_types=(bytes,))
    name = data.pop("type")
    if not previews:
        data.pop("preview", None)
    elif data.get("preview"):
        data["preview"] = pybase64.b64encode(data["preview"]).decode("ascii")
    if isinstance(numbered.event, Queued):
        data |= {"phase": "queued"}
    return name, data | {"job_id": job_id, "timestamp": numbered.timestamp}


def shown(job: Job) -> dict[str, Any]:
    """A job in JSON."""
    request = job.request
    error: dict[str, Any] | None = None
    if job.error_code:
        error = {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "status": job.status,
        "door": job.door,
        "owner": job.owner,
        "created": job.created,
        "model": request.model,
        "requested_model": request.asked,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "size": request.size,
        "n": request.n,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "sampler": request.sampler,
        "style": request.style,
        "loras": [{"name": one.name, "scale": one.scale} for one in request.loras],
        "seed": request.seed,
        "progress": job.progress,
        "fraction": job.fraction,
        "eta_seconds": job.eta_seconds,
        "message": job.message,
        "step": job.step,
        "total_steps": job.total_steps,
        "attempt": job.attempt,
        "queue_position": job.position,
        "images": [job.images[index].image_id for index in sorted(job.images)],
        "priority": job.terms.priority,
        "deadline": job.terms.deadline,
        "error": error,
    }
