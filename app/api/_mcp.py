"""Agents' sessions, and what their calls do: they become jobs like any other."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import anyio
import msgspec
from litestar.types import Receive, Scope, Send
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)
from pydantic import ValidationError

import app
from app.api._fields import PictureFields, refused
from app.api._http import envelope_of
from app.api._jobs import attended, error_of, events_of
from app.api._mcp_tools import FIELDS, TOOLS
from app.api._models import at_hand, model_shown
from app.api._owner import visible_job
from app.api._pictures import from_base64, to_base64, upright_size, without_alpha
from app.authentication import Authenticator
from app.domain.access import Caller
from app.domain.errors import EaselError, InvalidRequest, NotFound
from app.domain.events import Progressed, Queued
from app.domain.job import Job
from app.domain.request import Arguments
from app.service import ImageService

_NEWS = 0.001
"""Progress must grow with every message, also while a job waits: by so many percent."""

_MOST_SESSIONS = 1000
_IDLE_SECONDS = 600.0

Context = ServerRequestContext[Any, Any]
Json = dict[str, Any]


class _Wish(PictureFields):
    image: str | None = None
    image_id: str | None = None
    mask: str | None = None


class Sessions:
    def __init__(self, service: ImageService, authenticator: Authenticator, max_body: int) -> None:
        self._service = service
        self._authenticator = authenticator
        server = Server(
            "easel",
            version=app.__version__,
            instructions="Draws pictures with Stable Diffusion and Flux on this server's devices.",
            on_list_tools=self._tools,
            on_call_tool=self._call,
        )
        self._manager = StreamableHTTPSessionManager(
            server,
            max_request_body_size=max_body,
            max_sessions=_MOST_SESSIONS,
            session_idle_timeout=_IDLE_SECONDS,
        )
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        ready = asyncio.Event()

        async def run() -> None:
            async with self._manager.run():
                ready.set()
                await self._stop.wait()

        self._running = asyncio.create_task(run())
        await ready.wait()

    async def close(self) -> None:
        self._stop.set()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope["state"]["easel_caller"]
        # A session is only for who began it, which the package tells by this; the key was looked at.
        token = AccessToken(token="", client_id=caller.owner, scopes=[])  # nosec B106
        scope["user"] = AuthenticatedUser(token)
        await self._manager.asgi_app(scope, receive, send)  # type: ignore[arg-type]

    async def _tools(self, _: Context, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=TOOLS)

    async def _call(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """What goes wrong with a job is an answer, so that the agent can mend its call."""
        if params.name not in FIELDS:
            raise MCPError(INVALID_PARAMS, "There is no such tool.")
        given = params.arguments or {}
        try:
            if unknown := given.keys() - FIELDS[params.name]:
                raise InvalidRequest(
                    f"{params.name} takes no {_named(unknown)}.", param="arguments"
                )
            caller: Caller = context.request.scope["state"]["easel_caller"]  # type: ignore[union-attr]
            match params.name:
                case "list_models":
                    return self._models()
                case "watch_job":
                    return await self._watch(context, given, caller)
                case "cancel_job":
                    return await self._cancel(given, caller)
            return await self._draw(context, given, caller, edits=params.name == "edit_image")
        except EaselError as error:
            told = envelope_of(error)["error"]
            text = f"{told['message']} ({told['code']})"
            return CallToolResult(content=[TextContent(text=text)], is_error=True)

    def _models(self) -> CallToolResult:
        models = [
            {**model_shown(self._service, card), "state": files.state}
            for card in self._service.models()
            if at_hand(files := self._service.shelf.state(card.id))
        ]
        told = {"models": msgspec.to_builtins(models)}
        return CallToolResult(content=[TextContent(text=json.dumps(told))], structured_content=told)

    async def _watch(self, context: Context, given: Json, caller: Caller) -> CallToolResult:
        job = await visible_job(self._service, caller, str(given.get("job_id", "")))
        await self._follow(context, job)
        return await self._answer(await self._service.job(job.id))

    async def _cancel(self, given: Json, caller: Caller) -> CallToolResult:
        job = await visible_job(self._service, caller, str(given.get("job_id", "")))
        told = {"job_id": job.id, "status": (await self._service.cancel(job.id)).status}
        return CallToolResult(content=[TextContent(text=json.dumps(told))], structured_content=told)

    async def _draw(
        self, context: Context, given: Json, caller: Caller, *, edits: bool
    ) -> CallToolResult:
        try:
            wish = _Wish.model_validate(given)
        except ValidationError as error:
            raise refused(error) from error
        arguments = await self._begun(wish, caller) if edits else wish.to_arguments()
        self._authenticator.knock(caller)
        job = await attended(self._service, arguments, owner=caller.owner, door="mcp")
        try:
            await self._follow(context, job)
        finally:
            with anyio.CancelScope(
                shield=True
            ):  # an agent that gave up cancels all that is awaited
                await self._service.leave(job)
        return await self._answer(job)

    async def _begun(self, wish: _Wish, caller: Caller) -> Arguments:
        """With the picture that is drawn anew. Raises InvalidRequest, NotFound."""
        if (wish.image is None) == (wish.image_id is None):
            raise InvalidRequest("Give either image or image_id.", param="image")
        if wish.image is not None:
            image = from_base64(wish.image, "image")
        else:
            image = await self._own_picture(str(wish.image_id), caller)
        mask = wish.mask and without_alpha(from_base64(wish.mask, "mask"), "mask")
        return msgspec.structs.replace(
            wish.to_arguments(),
            image=image,
            image_size=upright_size(image, "image"),
            mask_image=mask or None,
        )

    async def _own_picture(self, image_id: str, caller: Caller) -> bytes:
        missing = NotFound("There is no such picture.", param="image_id")
        if not (image_id.isascii() and image_id.isalnum()):
            raise missing
        owner = await self._service.archive.owner_of_image(image_id)
        if owner is None or not caller.sees(owner):
            raise missing
        return (await self._service.image(image_id)).data

    async def _follow(self, context: Context, job: Job) -> None:
        last = 0.0
        async for numbered in events_of(self._service, job):
            match numbered.event:
                case Queued(position, eta):
                    last += _NEWS
                    text = f"Waiting in the queue (position {position}), {eta:.1f} s left"
                    await context.session.report_progress(last, 100.0, text)
                case Progressed() as event if event.progress > last:
                    last = event.progress
                    text = f"{event.message} {event.eta_seconds:.1f} s left"
                    await context.session.report_progress(last, 100.0, text)

    async def _answer(self, job: Job) -> CallToolResult:
        """Raises what the job ended with."""
        if (failed := error_of(job)) is not None:
            raise failed
        pictures: list[ImageContent] = []
        images: list[Json] = []
        for index in sorted(job.images):
            image = job.images[index]
            stored = await self._service.image(image.image_id)
            pictures.append(ImageContent(data=to_base64(stored.data), mime_type=stored.media_type))
            told = {"image_id": image.image_id, "seed": image.seed}
            images.append({**told, "media_type": stored.media_type})
        drawn = {"job_id": job.id, "model": job.request.model, "size": job.request.size}
        structured = {**drawn, "images": images}
        return CallToolResult(
            content=[*pictures, TextContent(text=json.dumps(structured))],
            structured_content=structured,
        )


def _named(unknown: set[str]) -> str:
    names = sorted(name for name in unknown if re.fullmatch(r"[A-Za-z0-9_]{1,64}", name))
    return ", ".join(names[:5]) or "such arguments"
