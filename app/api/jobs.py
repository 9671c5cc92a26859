"""Easel's own door: jobs that outlive a connection, their events, and their pictures."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
import pybase64
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from app.api._fields import PictureFields
from app.api._http import DoorSettings, EventStream, require_json, sse
from app.api._owner import owner_of
from app.api._schema import BODY, EVENTS, LAST_EVENT_ID, PICTURE, SUBMITS, answers
from app.api._shapes import Estimate, JobList, JobShown
from app.domain.errors import InvalidRequest
from app.domain.events import Queued
from app.domain.job import Job
from app.service import ImageService


class JobBody(PictureFields):
    """The fields of `POST /v1/images/generations`."""


@post("/jobs", status_code=202, guards=[require_json], **answers(JobShown, *SUBMITS, status=202))
async def create_job(
    data: JSONBody[JobBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> dict[str, Any]:
    """Take a job and answer at once; it goes on whether or not anybody watches."""
    return _shown(service.submit(data.to_arguments(), owner=owner_of(request, doors), door="jobs"))


@get("/jobs", **answers(JobList, 400))
async def list_jobs(
    service: NamedDependency[ImageService],
    q: FromQuery[str] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """Jobs of every door, newest first; `q` is words that the prompt must hold, in any case."""
    return {"jobs": [_shown(job) for job in service.jobs(words=q, limit=limit)]}


@get("/jobs/{job_id:str}", **answers(JobShown, 404))
async def get_job(job_id: FromPath[str], service: NamedDependency[ImageService]) -> dict[str, Any]:
    """The job now."""
    return _shown(service.job(job_id))


@delete("/jobs/{job_id:str}", status_code=200, **answers(JobShown, 404))
async def cancel_job(
    job_id: FromPath[str], service: NamedDependency[ImageService]
) -> dict[str, Any]:
    """Cancel; a job that has ended stays as it is."""
    return _shown(await service.cancel(job_id))


@get(
    "/jobs/{job_id:str}/events",
    **answers(None, 400, 404, also=EVENTS, parameters=(LAST_EVENT_ID,)),
)
async def job_events(
    job_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> EventStream:
    """All events of the job, from 1 or from behind `Last-Event-ID`, to the terminal one."""
    given = request.headers.get("last-event-id", "0")
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise InvalidRequest("Last-Event-ID must be a number.", param="Last-Event-ID")
    service.job(job_id)
    return EventStream(_frames(service, job_id, int(given)), heartbeat=doors.heartbeat)


@get("/images/{image_id:str}", **answers(None, 404, also=PICTURE))
async def get_image(
    image_id: FromPath[str], service: NamedDependency[ImageService]
) -> Response[bytes]:
    """A finished picture."""
    stored = await service.image(image_id)
    return Response(
        stored.data,
        media_type=stored.media_type,
        headers={
            "cache-control": "private, max-age=31536000, immutable",
            "x-content-type-options": "nosniff",
        },
    )


@post("/estimate", status_code=200, guards=[require_json], **answers(Estimate, *BODY, 404))
async def estimate(
    data: JSONBody[JobBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> dict[str, Any]:
    """What a job with this body would draw, and when it would be done, without taking it."""
    owner = owner_of(request, doors)
    wish, expected = service.estimate(data.to_arguments(), owner=owner)
    return {
        "model": wish.model,
        "size": wish.size,
        "n": wish.n,
        "num_inference_steps": wish.num_inference_steps,
        **msgspec.structs.asdict(expected),
    }


async def _frames(service: ImageService, job_id: str, after: int) -> AsyncGenerator[bytes, None]:
    async for numbered in service.follow(job_id, after):
        told = msgspec.to_builtins(numbered.event, builtin_types=(bytes,))
        name = told.pop("type")
        if told.get("preview"):
            told["preview"] = pybase64.b64encode(told["preview"]).decode("ascii")
        if isinstance(numbered.event, Queued):
            told |= {"phase": "queued", "progress": 0.0}
        told |= {"job_id": job_id, "timestamp": numbered.timestamp}
        yield sse(name, told, id=numbered.number)


def _shown(job: Job) -> dict[str, Any]:
    request = job.request
    shown = {
        "id": job.id,
        "status": job.status,
        "door": job.door,
        "created": job.created,
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "size": request.size,
        "n": request.n,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "sampler": request.sampler,
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
        "error": None,
    }
    if job.error_code:
        shown["error"] = {"code": job.error_code, "message": job.error_message}
    return shown


HANDLERS = [create_job, list_jobs, get_job, cancel_job, job_events, get_image, estimate]
