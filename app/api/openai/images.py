"""Generations, edits and variations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api._http import DoorSettings, envelope_of, require_json, wait_for
from app.api._jobs import error_of
from app.api._owner import owner_of
from app.api._schema import (
    EVENTS,
    IDEMPOTENCY_KEY,
    JOB_HEADERS,
    REPLAYED,
    SUBMITS,
    WAITS,
    Answers,
    answers,
)
from app.api._shapes import Pictures
from app.api._streams import EventStream, LongAnswer
from app.api.openai.answers import Operation, openai_frames, progress_frames, whole_answer
from app.api.openai.bodies import (
    EditBody,
    GenerationBody,
    Upload,
    VariationBody,
    attempt_of,
)
from app.domain.errors import Unavailable
from app.domain.job import Job
from app.domain.request import Arguments
from app.service import ImageService

_PREFIXES = ("/v1", "/openai/v1", "")


def _paths(path: str) -> list[str]:
    return [f"{prefix}/images/{path}" for prefix in _PREFIXES]


def _answers(form: type[GenerationBody] | None = None) -> Answers:
    return answers(
        Pictures,
        *WAITS,
        also=EVENTS,
        headers={**JOB_HEADERS, **REPLAYED},
        parameters=(IDEMPOTENCY_KEY,),
        form=form,
        access="generate",
    )


@post(_paths("generations"), status_code=200, guards=[require_json], **_answers())
async def generate(
    data: JSONBody[GenerationBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> Response[bytes]:
    """Draw pictures; with `stream: true` as server-sent events that OpenAI's SDKs understand."""
    body = msgspec.json.encode(msgspec.json.decode(await request.body()), order="deterministic")
    digest = hashlib.sha256(body).hexdigest()
    given = data.to_arguments(doors.efforts)
    return await _answer(request, service, doors, data, given, digest, "image_generation")


@post(_paths("edits"), status_code=200, **_answers(EditBody))
async def edit(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> Response[bytes]:
    """Draw a picture anew from one that is sent (multipart), all of it or where the mask says."""
    form = await Upload.read(request)
    body = form.body(EditBody)
    given = form.onto(body.to_arguments(doors.efforts))
    return await _answer(request, service, doors, body, given, form.digest, "image_edit")


@post(_paths("variations"), status_code=200, **_answers(VariationBody))
async def vary(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> Response[bytes]:
    """Draw pictures like one that is sent (multipart), without a prompt."""
    form = await Upload.read(request)
    body = form.body(VariationBody)
    given = form.onto(body.to_arguments(doors.efforts))
    return await _answer(request, service, doors, body, given, form.digest, "image_generation")


@post(
    _paths("generations/stream"),
    status_code=200,
    guards=[require_json],
    **answers(None, *SUBMITS, also=EVENTS, headers=JOB_HEADERS, access="generate"),
)
async def generate_with_progress(
    data: JSONBody[GenerationBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> Response[bytes]:
    """The same body as `generations`; events `progress`, then `done` with the pictures, or `error`."""
    given = data.to_arguments(doors.efforts)
    job = await service.submit(
        given,
        owner=owner_of(request, doors),
        door="openai-progress",
        grace=_grace(data.on_hang_up or doors.on_hang_up),
    )
    service.attend(job)
    frames = progress_frames(
        request, service, job, url=data.response_format == "url", quality=data.quality
    )
    return EventStream(
        frames,
        heartbeat=doors.heartbeat,
        on_close=lambda: service.leave(job),
        headers=_headers(service, job, data, given, replayed=False),
    )


async def _answer(
    request: Request[Any, Any, Any],
    service: ImageService,
    doors: DoorSettings,
    body: GenerationBody,
    given: Arguments,
    digest: str,
    operation: Operation,
) -> Response[bytes]:
    attempt = attempt_of(request, digest, owner_of(request, doors))
    # Who sends a key means to come back for the result.
    policy = body.on_hang_up or ("finish" if attempt.key else doors.on_hang_up)
    job, replayed = await service.submit_once(attempt, given, door="openai", grace=_grace(policy))
    headers = _headers(service, job, body, given, replayed=replayed)
    if body.stream:
        service.attend(job)
        frames = openai_frames(
            service, job, operation, quality=body.quality, progress=bool(body.stream_progress)
        )
        return EventStream(
            frames,
            heartbeat=doors.heartbeat,
            on_close=lambda: service.leave(job),
            headers=headers,
        )
    url = body.response_format == "url"
    service.attend(job)
    try:
        ended = await wait_for(request, service, job, patience=doors.json_heartbeat_after or None)
    except BaseException:
        await service.leave(job)
        raise
    if not ended:
        return LongAnswer(
            _late_answer(request, service, job, url=url, quality=body.quality),
            media_type="application/json",
            heartbeat=b" ",
            interval=doors.heartbeat,
            on_close=lambda: service.leave(job),
            headers=headers,
        )
    await service.leave(job)
    answer = await whole_answer(request, service, job, url=url, quality=body.quality)
    if (seconds := service.reception.seconds_of(job.id)) is not None:
        headers["x-easel-gpu-seconds"] = f"{seconds:.3f}"
    return Response(answer, media_type="application/json", headers=headers)


async def _late_answer(
    request: Request[Any, Any, Any],
    service: ImageService,
    job: Job,
    *,
    url: bool,
    quality: str | None,
) -> AsyncGenerator[bytes, None]:
    """The body of an answer whose status is already sent: a failure can only be told inside."""
    try:
        await service.wait(job.id)
        error = error_of(job)
    except Unavailable as ending:
        error = ending
    if error is not None:
        yield msgspec.json.encode(envelope_of(error))
    else:
        yield await whole_answer(request, service, job, url=url, quality=quality)


def _grace(policy: str) -> float:
    """Seconds that a job goes on when its client has left: `cancel`, `finish` or `grace:<seconds>`."""
    if policy == "finish":
        return math.inf
    return float(policy.partition(":")[2] or 0)


def _headers(
    service: ImageService, job: Job, body: GenerationBody, given: Arguments, *, replayed: bool
) -> dict[str, str]:
    headers = {"x-easel-job": job.id}
    if ignored := [*body.ignored, *service.unused(given, job.request)]:
        headers["x-easel-ignored"] = ", ".join(ignored)
    if replayed:
        headers["idempotent-replayed"] = "true"
    return headers


HANDLERS = [generate, generate_with_progress]
UPLOADS = [edit, vary]
