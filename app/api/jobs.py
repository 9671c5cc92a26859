"""Easel's own door: jobs that outlive a connection, their events, and how they are found again."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from litestar import Request, WebSocket, delete, get, post, put, websocket
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import Field

from app.api._access import caller_of
from app.api._fields import PictureFields
from app.api._http import DoorSettings, require_json
from app.api._jobs import shown, told
from app.api._owner import own_job, owner_of
from app.api._schema import BODY, EVENTS, LAST_EVENT_ID, SUBMITS, answers
from app.api._shapes import Estimate, Forgotten, JobList, JobShown
from app.api._streams import EventStream, sse
from app.attendance import FOREVER
from app.domain.errors import EaselError, InvalidRequest, NotFound, Unavailable
from app.domain.job import Job, Status
from app.domain.request import Arguments
from app.service import ImageService
from app.store.history import Past, Wanted

_GOING_AWAY, _UNKNOWN, _UNUSABLE = 1012, 4404, 4400
"""How a WebSocket is closed when no terminal event was sent: come again; there is no such job; the
question was wrong."""

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Text = Annotated[str | None, QueryParameter(max_length=256)]


class JobBody(PictureFields):
    """The fields of `POST /v1/images/generations`; `partial_images` are `preview`s in events."""

    partial_images: int | None = Field(default=None, ge=0, le=3)

    def to_arguments(self) -> Arguments:
        return msgspec.structs.replace(super().to_arguments(), previews=self.partial_images)


@post(
    "/jobs",
    status_code=202,
    guards=[require_json],
    **answers(JobShown, *SUBMITS, status=202, access="generate"),
)
async def create_job(
    data: JSONBody[JobBody],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> dict[str, Any]:
    """Take a job and answer at once; it goes on whether or not anybody watches."""
    owner = owner_of(request, doors)
    job = await service.submit(data.to_arguments(), owner=owner, door="jobs", grace=FOREVER)
    return await _with_outlook(service, job)


@post(
    "/jobs/{job_id:str}/replay",
    status_code=202,
    **answers(JobShown, *SUBMITS, status=202, access="generate"),
)
async def replay_job(
    job_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> dict[str, Any]:
    """Draw a job again, exactly as it was."""
    await own_job(request, service, job_id)
    job = await service.replay(job_id, owner=owner_of(request, doors), door="jobs")
    return await _with_outlook(service, job)


async def _with_outlook(service: ImageService, job: Job) -> dict[str, Any]:
    """A new job, once it is known when it will be done: its first event says that."""
    with contextlib.suppress(Unavailable):  # it is accepted all the same
        async with contextlib.aclosing(service.follow(job.id)) as events:
            await anext(events)
    return shown(job)


@get("/jobs", **answers(JobList, 400, 503, access="generate"))
async def list_jobs(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    q: Annotated[str, QueryParameter(max_length=1000)] = "",
    model: Text = None,
    status: FromQuery[Status | None] = None,
    owner: Text = None,
    door: Text = None,
    size: Text = None,
    since: FromQuery[float | None] = None,
    until: FromQuery[float | None] = None,
    favourite: FromQuery[bool] = False,
    tag: Text = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
) -> dict[str, Any]:
    """Jobs of every door, newest first: the caller's own, or everybody's for who may see them.

    `q` is beginnings of words of the prompt, in any case and order; `since` and `until` are Unix
    seconds; `cursor` is that of the page before.
    """
    caller = caller_of(request)
    if owner is None and not caller.everyone:
        owner = caller.owner
    if owner is not None and not caller.sees(owner):
        return {"jobs": [], "cursor": None}
    wanted = Wanted(
        words=q,
        model=model,
        status=status,
        owner=owner,
        door=door,
        size=size,
        since=since,
        until=until,
        favourite=favourite,
        tag=tag,
    )
    page = await service.archive.list(wanted, limit=limit, cursor=cursor)
    return {"jobs": [_shown_past(past) for past in page.jobs], "cursor": page.cursor}


@get("/jobs/{job_id:str}", **answers(JobShown, 404, 503, access="generate"))
async def get_job(
    job_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
) -> dict[str, Any]:
    """The job now."""
    job = await own_job(request, service, job_id)
    return _shown_past(msgspec.structs.replace(await service.archive.get(job_id), job=job))


@delete(
    "/jobs/{job_id:str}", status_code=200, **answers(JobShown, 400, 404, 503, access="generate")
)
async def cancel_job(
    job_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    forget: FromQuery[bool] = False,
) -> dict[str, Any]:
    """Cancel; a job that has ended stays as it is. With `forget`, its pictures and all that is known
    of it are removed."""
    await own_job(request, service, job_id)
    job = await service.cancel(job_id)
    if forget:
        await service.forget(job_id)
    return shown(job)


@delete("/jobs", status_code=200, **answers(Forgotten, 400, 503, access="generate"))
async def forget_mine(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
    mine: FromQuery[bool] = False,
) -> dict[str, int]:
    """With `mine`, remove every job of the caller, its pictures, and all that is known of it."""
    if not mine:
        raise InvalidRequest("Say ?mine=true to remove all of your jobs.", param="mine")
    return {"forgotten": await service.forget_owner(owner_of(request, doors))}


@put(
    "/jobs/{job_id:str}/tags/{tag:str}",
    status_code=200,
    **answers(JobShown, 400, 404, 503, access="generate"),
)
async def add_tag(
    job_id: FromPath[str],
    tag: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
) -> dict[str, Any]:
    """Put a tag on a job."""
    await own_job(request, service, job_id)
    await service.archive.tag(job_id, tag)
    return _shown_past(await service.archive.get(job_id))


@delete(
    "/jobs/{job_id:str}/tags/{tag:str}",
    status_code=200,
    **answers(JobShown, 400, 404, 503, access="generate"),
)
async def remove_tag(
    job_id: FromPath[str],
    tag: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
) -> dict[str, Any]:
    """Take a tag off a job."""
    await own_job(request, service, job_id)
    await service.archive.tag(job_id, tag, on=False)
    return _shown_past(await service.archive.get(job_id))


# -- events ----------------------------------------------------------------------------------------


@get(
    "/jobs/{job_id:str}/events",
    **answers(None, 400, 404, 503, also=EVENTS, parameters=(LAST_EVENT_ID,), access="generate"),
)
async def job_events(
    job_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> EventStream:
    """All events of the job, from 1 or from behind `Last-Event-ID`, to the terminal one."""
    after = _number(request.headers.get("last-event-id", "0"), "Last-Event-ID")
    await own_job(request, service, job_id)
    return EventStream(_frames(service, job_id, after), heartbeat=doors.heartbeat)


@get("/jobs/events", **answers(None, also=EVENTS, access="generate"))
async def all_events(
    request: Request[Any, Any, Any],
    service: NamedDependency[ImageService],
    doors: NamedDependency[DoorSettings],
) -> EventStream:
    """News of all jobs of the caller: how each one stands (`job`), then every event as it comes."""
    frames = _feed(service, owner_of(request, doors))
    return EventStream(frames, heartbeat=doors.heartbeat)


@websocket("/jobs/{job_id:str}/ws", opt={"access": "generate"})
async def job_socket(
    job_id: FromPath[str], socket: WebSocket[Any, Any, Any], service: NamedDependency[ImageService]
) -> None:
    """The same events as messages `{"id", "event", "data"}`, from behind `?after=` on."""
    await socket.accept()
    sending = asyncio.create_task(_send_all(socket, service, job_id))
    leaving = asyncio.create_task(_until_left(socket))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            code, reason = sending.result()
            await socket.close(code, reason)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(
    socket: WebSocket[Any, Any, Any], service: ImageService, job_id: str
) -> tuple[int, str]:
    """Send every event; the code and the reason to close with."""
    try:
        after = _number(socket.query_params.get("after", "0"), "after")
        await own_job(socket, service, job_id)
        async for numbered in service.follow(job_id, after):
            name, data = told(job_id, numbered)
            message = {"id": numbered.number, "event": name, "data": data}
            await socket.send_data(msgspec.json.encode(message).decode(), mode="text")
    except NotFound as error:
        return _UNKNOWN, error.message
    except Unavailable as error:
        return _GOING_AWAY, error.message
    except EaselError as error:
        return _UNUSABLE, error.message
    return 1000, ""


async def _until_left(socket: WebSocket[Any, Any, Any]) -> None:
    """What a client sends has no meaning here; that it leaves has."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _number(given: str, param: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise InvalidRequest(f"{param} must be a number.", param=param)
    return int(given)


async def _frames(service: ImageService, job_id: str, after: int) -> AsyncGenerator[bytes, None]:
    with contextlib.suppress(Unavailable):  # no terminal event: the client comes again for the rest
        async for numbered in service.follow(job_id, after):
            name, data = told(job_id, numbered)
            yield sse(name, data, id=numbered.number)


async def _feed(service: ImageService, owner: str) -> AsyncGenerator[bytes, None]:
    yield b": these are all of your jobs\n\n"
    async for news in service.feed(owner):
        if isinstance(news, Job):
            yield sse("job", shown(news))
        else:
            job, numbered = news
            name, data = told(job.id, numbered)
            yield sse(name, {"number": numbered.number, **data})


@post(
    "/estimate",
    status_code=200,
    guards=[require_json],
    **answers(Estimate, *BODY, 404, access="generate"),
)
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


def _shown_past(past: Past) -> dict[str, Any]:
    """A job, and what was made of it since."""
    states: dict[str, list[str]] = {"favourites": [], "not_stored": []}
    for picture in past.pictures:
        if picture.favourite:
            states["favourites"].append(picture.id)
        if picture.state == "not_stored":
            states["not_stored"].append(picture.id)
    return {**shown(past.job), "tags": past.tags, **states}


HANDLERS = [
    create_job,
    replay_job,
    list_jobs,
    get_job,
    cancel_job,
    forget_mine,
    add_tag,
    remove_tag,
    job_events,
    all_events,
    job_socket,
    estimate,
]
