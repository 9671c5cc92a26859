"""What all HTTP doors share: errors in one envelope, streams, and noticing that a client has left."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import ExceptionHandlersMap, Message, Receive, Scope
from ulid import ULID

from app.api._jobs import error_of
from app.domain import errors
from app.domain.job import Job
from app.reception import Rate
from app.service import ImageService
from app.store.errors import StorageFull, StoreUnavailable

_log = logging.getLogger(__name__)

STATUS: dict[str, int] = {
    errors.InvalidRequest.code: 400,
    errors.UnknownModel.code: 404,
    errors.UnknownLora.code: 404,
    errors.NotFound.code: 404,
    errors.ModelInUse.code: 400,  # 409 would make SDKs try again
    errors.KeyReused.code: 422,  # 409 would make SDKs try again
    errors.Refused.code: 403,
    errors.NotAuthenticated.code: 401,
    errors.NotAllowed.code: 403,
    errors.QueueFull.code: 429,
    errors.RateLimited.code: 429,
    errors.QuotaSpent.code: 429,
    errors.TryLater.code: 503,
    errors.UploadsFull.code: 503,
    errors.Unavailable.code: 503,
    errors.ShuttingDown.code: 503,
    StorageFull.code: 503,
    StoreUnavailable.code: 503,
    errors.GenerationFailed.code: 500,
    errors.InvalidOutput.code: 500,
    errors.OutOfMemory.code: 503,
    errors.ModelUnavailable.code: 500,
    errors.ModelNotFetched.code: 503,
    errors.WorkerCrashed.code: 500,
    errors.TimedOut.code: 504,
    errors.DeadlineExceeded.code: 504,
    # Somebody else cancelled the job that this client waits for.
    errors.Cancelled.code: 422,
    errors.EaselError.code: 500,
}

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}

_MESSAGES = {
    400: ("invalid_body", "The body cannot be read as the JSON object that this route takes."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method."),
    413: ("body_too_large", "The body is larger than the server allows."),
    415: ("unsupported_media_type", "Send the body as application/json."),
}
"""Texts for what the framework refuses; its own may quote the request."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class DoorSettings(msgspec.Struct, frozen=True):
    """What doors need to know of the settings; see config/easel.toml. Times are seconds."""

    heartbeat: float
    on_hang_up: str
    json_heartbeat_after: float
    efforts: dict[str, float]
    trust_user_header: bool = False


class ClientLeft(Exception):
    """The client hung up while it was waiting; nobody reads the answer."""


# -- request ids -----------------------------------------------------------------------------------


def request_id(scope: Scope) -> str:
    """The client's own `x-request-id` when it is well-formed, else a new one; kept with the request."""
    state = scope.setdefault("state", {})
    if "easel_request_id" not in state:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        state["easel_request_id"] = request_id_of(given)
    return cast("str", state["easel_request_id"])


def request_id_of(given: str) -> str:
    """The same for what a client gave, at any door."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{ULID()}"


async def add_request_id(message: Message, scope: Scope) -> None:
    """A Litestar `before_send` hook."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders(message)
        headers["x-request-id"] = request_id(scope)
        if (rate := cast("Rate | None", scope["state"].get("easel_rate"))) is not None:
            headers["x-ratelimit-limit-requests"] = str(rate.limit)
            headers["x-ratelimit-remaining-requests"] = str(rate.left)


def say_goodbye(going: Callable[[], bool]) -> Callable[[Message, Scope], Awaitable[None]]:
    """A `before_send` hook: while the server is `going`, connections end with their answers, so that
    no proxy sends the next request on one that is about to be closed."""

    async def hook(message: Message, _: Scope) -> None:
        if message["type"] == "http.response.start" and going():
            MutableScopeHeaders(message)["connection"] = "close"

    return hook


# -- errors ----------------------------------------------------------------------------------------


def envelope(message: str, type: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error body; every error of every door has this shape."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def envelope_of(error: errors.EaselError) -> dict[str, Any]:
    kind = _TYPES.get(STATUS.get(error.code, 500), "server_error")
    return envelope(error.message, kind, error.code, error.param)


def _answer(
    status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> Response[Any]:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _on_easel_error(_: Request[Any, Any, Any], error: errors.EaselError) -> Response[Any]:
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unavailable | errors.ModelNotFetched):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, errors.NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    spent = isinstance(error, errors.GenerationFailed | errors.QuotaSpent)
    if spent and not isinstance(error, errors.ModelNotFetched):
        headers["x-should-retry"] = "false"  # OpenAI's SDKs would draw it twice more
    return _answer(STATUS.get(error.code, 500), envelope_of(error), headers)


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    status = error.status_code
    if status >= 500:
        return _on_bug(request, error)
    extra = getattr(error, "extra", None)
    first = extra[0] if isinstance(extra, list) and extra and isinstance(extra[0], dict) else {}
    if status == 400 and first.get("key"):
        param = str(first["key"])
        name = param if re.fullmatch(r"[A-Za-z0-9_.\[\]]{1,64}", param) else "body"
        text = f"{name}: {first.get('message', 'not valid')}."
        return _answer(400, envelope(text, _TYPES[400], "invalid_value", name))
    code, text = _MESSAGES.get(status, ("http_error", "The request cannot be served."))
    if isinstance(extra, dict) and "send" in extra:
        text = f"Send the body as {extra['send']}."
    allow = getattr(error, "headers", None) or {}
    return _answer(status, envelope(text, _TYPES.get(status, "server_error"), code), allow)


def _on_bad_text(_: Request[Any, Any, Any], __: Exception) -> Response[Any]:
    """Bytes that are not UTF-8, or JSON nested beyond reason: both come out of decoding a body."""
    code, text = _MESSAGES[400]
    return _answer(400, envelope(text, _TYPES[400], code))


def _on_client_left(_: Request[Any, Any, Any], __: ClientLeft) -> Response[Any]:
    return _answer(400, envelope("The client left.", _TYPES[400], "client_left"))


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    _log.error("request %s failed", request_id(request.scope), exc_info=error)
    text = f"The server made a mistake. Its log tells more about {request_id(request.scope)}."
    return _answer(500, envelope(text, "server_error", "internal_error"))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    errors.EaselError: _on_easel_error,
    HTTPException: _on_http_error,
    UnicodeDecodeError: _on_bad_text,
    RecursionError: _on_bad_text,
    ClientLeft: _on_client_left,
    Exception: _on_bug,
}


def require_json(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard: a web page may post text/plain to any address without asking, so that is refused."""
    kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(status_code=415)


# -- clients that leave ----------------------------------------------------------------------------


async def hang_up(receive: Receive) -> None:
    """Return when the client has left. The body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def wait_for(
    request: Request[Any, Any, Any],
    service: ImageService,
    job: Job,
    *,
    patience: float | None = None,
) -> bool:
    """Wait until the job has ended well; False when it has not after `patience` seconds.

    When the client leaves first, the job is left: its policy says what follows. The web server only
    notes that a client has left, and would let the handler run on (uvicorn 0.54).

    Raises:
        ClientLeft: there is nobody to answer.
        EaselError: the job failed, expired, or was cancelled elsewhere.
    """
    service.attend(job)
    ended = asyncio.create_task(service.wait(job.id))
    left = asyncio.create_task(hang_up(request.receive))
    try:
        await asyncio.wait({ended, left}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if left.done() and not ended.done():
            raise ClientLeft
        if not ended.done():
            return False
        ended.result()
    finally:
        await end(ended, left)
        await service.leave(job)
    if (error := error_of(job)) is not None:
        raise error
    return True


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, and see to it that they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
