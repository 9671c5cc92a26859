"""`/generate/ws`: jobs are submitted, watched and cancelled on one WebSocket.

Every message is a JSON object with a `type`, but for pictures: each of those is a binary message right
after the JSON that announces it. Several jobs may go on at once; `tag` is the client's own word for
one. What clients may rely on is told in docs/websocket.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from litestar import WebSocket, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from msgspec.structs import replace
from pydantic import Field, ValidationError

from app.api._access import credential, user_of
from app.api._fields import PictureFields, refused
from app.api._http import envelope_of
from app.api._jobs import error_in, events_of, told
from app.api._owner import visible_job
from app.authentication import Authenticator
from app.domain.access import Caller
from app.domain.errors import EaselError, InvalidRequest, QueueFull
from app.domain.events import Expired, Failed, ImageReady, JobCancelled, Progressed, Succeeded
from app.domain.job import Job
from app.domain.request import Arguments
from app.service import ImageService

_MOST_JOBS = 64
"""Jobs that one socket may have at once."""

_SOON = 5
"""Seconds after which one of them may have ended."""

_TAG = re.compile(r"[\x20-\x7e]{1,128}")

Json = dict[str, Any]


class SocketBody(PictureFields):
    """The fields of `POST /generate`; and how many previews to show."""

    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None

    def to_arguments(self) -> Arguments:
        return replace(super().to_arguments(), previews=self.partial_images)


@websocket("/generate/ws", opt={"access": "generate"})
async def generate_socket(
    socket: WebSocket[Any, Any, Any],
    service: NamedDependency[ImageService],
    authenticator: NamedDependency[Authenticator],
) -> None:
    """Whoever leaves cancels the jobs that he has on the socket."""
    await socket.accept()
    await _Conversation(socket, service, authenticator).hold()


class _Conversation:
    def __init__(
        self,
        socket: WebSocket[Any, Any, Any],
        service: ImageService,
        authenticator: Authenticator,
    ) -> None:
        self._socket = socket
        self._service = service
        self._authenticator = authenticator
        self._sending = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()

    async def hold(self) -> None:
        """Answer until the client leaves."""
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._hear(message.get("text"))
        except WebSocketDisconnect:
            return
        finally:
            for task in self._jobs:
                task.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _hear(self, text: object) -> None:
        tag: str | None = None
        try:
            given = _object(text)
            tag = _tag(given.pop("tag", None))
            match given.pop("type", None):
                case "generate":
                    await self._generate(given, tag)
                case "watch":
                    job = await self._visible(given.get("job_id"))
                    self._check_room()
                    self._spawn(self._follow(job, tag))
                case "cancel":
                    job = await self._visible(given.get("job_id"))
                    await self._service.cancel(job.id)
                case _:
                    text = 'type must be "generate", "watch" or "cancel".'
                    raise InvalidRequest(text, param="type")
        except EaselError as error:
            await self._tell({"type": "error", **envelope_of(error)}, tag)

    async def _caller(self) -> Caller:
        """Who speaks; asked anew each time, for his key may have been revoked."""
        given = credential(self._socket.headers)
        return await self._authenticator.caller(given, "generate", user_of(self._socket))

    async def _generate(self, given: Json, tag: str | None) -> None:
        caller = await self._caller()
        self._authenticator.knock(caller)
        self._check_room()
        try:
            arguments = SocketBody.model_validate(given).to_arguments()
        except ValidationError as error:
            raise refused(error) from error
        job = await self._service.submit(arguments, owner=caller.owner, door="websocket")
        self._service.attend(job)
        self._spawn(self._draw(job, tag))

    def _check_room(self) -> None:
        """Raises QueueFull."""
        if len(self._jobs) >= _MOST_JOBS:
            text = f"This socket has {_MOST_JOBS} jobs, as many as it may."
            raise QueueFull(text, retry_after=_SOON)

    async def _visible(self, job_id: object) -> Job:
        """A job of any door. Raises InvalidRequest, NotFound, NotAuthenticated, NotAllowed."""
        if not isinstance(job_id, str):
            raise InvalidRequest("job_id must be the id of a job.", param="job_id")
        return await visible_job(self._service, await self._caller(), job_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _draw(self, job: Job, tag: str | None) -> None:
        try:
            with suppress(WebSocketDisconnect, RuntimeError):  # it closed at once
                await self._tell({"type": "accepted", "job_id": job.id}, tag)
            await self._follow(job, tag)
        finally:
            await self._service.leave(job)

    async def _follow(self, job: Job, tag: str | None) -> None:
        try:
            async for numbered in events_of(self._service, job):
                name, data = told(job.id, numbered, previews=False)
                news = {"type": name, "id": numbered.number, **data}
                match numbered.event:
                    case Progressed(preview=bytes(preview), image_index=index):
                        await self._tell(news, tag)
                        announced = {"type": "preview", "job_id": job.id, "index": index or 0}
                        await self._show(announced, preview, tag)
                    case ImageReady(index, image_id, seed):
                        picture = await self._service.image(image_id)
                        announced = {"type": "picture", "job_id": job.id, "index": index}
                        announced |= {
                            "image_id": image_id,
                            "seed": seed,
                            "media_type": picture.media_type,
                        }
                        await self._show(announced, picture.data, tag)
                    case Failed() | Expired() | JobCancelled() as end:
                        envelope = envelope_of(error_in(end))
                        await self._tell({**news, **envelope, "type": "error"}, tag)
                    case Succeeded():
                        await self._tell({**news, "type": "done", "model": job.request.model}, tag)
                    case _:
                        await self._tell(news, tag)
        except EaselError as error:  # a picture was removed meanwhile
            await self._tell({"type": "error", "job_id": job.id, **envelope_of(error)}, tag)
        except (WebSocketDisconnect, RuntimeError):  # it closed while something was sent
            pass

    async def _tell(self, message: Json, tag: str | None) -> None:
        async with self._sending:
            await self._send(message, tag)

    async def _show(self, announced: Json, picture: bytes, tag: str | None) -> None:
        async with self._sending:  # nothing comes between a picture and what announces it
            await self._send({**announced, "bytes": len(picture)}, tag)
            await self._socket.send_data(picture, mode="binary")

    async def _send(self, message: Json, tag: str | None) -> None:
        if tag is not None:
            message = {**message, "tag": tag}
        await self._socket.send_data(msgspec.json.encode(message).decode(), mode="text")


def _object(text: object) -> Json:
    """The object in a message. Raises InvalidRequest."""
    try:
        given = msgspec.json.decode(text if isinstance(text, str) else "")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest("Send a JSON object as text.", param="body")
    return given


def _tag(given: object) -> str | None:
    if given is None or (isinstance(given, str) and _TAG.fullmatch(given)):
        return given
    raise InvalidRequest("tag must be 1 to 128 visible ASCII characters.", param="tag")


HANDLERS = [generate_socket]
