"""What stands before all calls: who may come in, errors as statuses, one line in the log for each.

Who asks is found out before his message is read, so that nobody without a key makes the server take in
a large one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc import StatusCode
from litestar.datastructures import Headers

from app.api._access import credential
from app.api._http import request_id_of
from app.api.grpc.statuses import status_of
from app.authentication import Authenticator
from app.domain.access import Access, Caller
from app.domain.errors import EaselError, InvalidRequest, NotAllowed, ShuttingDown
from app.metrics import Metrics
from app.reception import Rate, Reception

_log = logging.getLogger("app.requests")

_IMAGES, _JOBS = "/starweave.ImageGenerationService/", "/starweave.JobService/"
_HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

ACCESS: dict[str, Access] = {
    f"{_IMAGES}GenerateImage": "generate",
    f"{_IMAGES}GenerateImageVariations": "generate",
    f"{_IMAGES}GenerateImageStream": "generate",
    f"{_IMAGES}GetImageModels": "any",
    f"{_JOBS}GetJob": "generate",
    f"{_JOBS}WatchJob": "generate",
    f"{_JOBS}CancelJob": "generate",
    f"{_HEALTH}Check": "public",
    f"{_HEALTH}List": "public",
    f"{_HEALTH}Watch": "public",
    REFLECTION: "any",
}
"""What each method asks for. One that is not named here lets in nobody."""

COUNTED = tuple(name for name in ACCESS if name.startswith(f"{_IMAGES}Generate"))
"""Requests that count against a key's limit."""

_ENDLESS = (f"{_HEALTH}Watch", REFLECTION)
"""Calls that go on until somebody ends them."""

_UNKNOWN = "unknown"
_USER = "x-openwebui-user-id"
_FREE = 1 << 20
"""Bytes of a message that are not counted among the pictures that arrive."""

_LAST_WORDS = 2.0
"""Seconds that calls get to end by themselves, and again after they were told to."""

_GOING = "The server is shutting down."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Call:
    """One call: its method, the id that the log knows it by, and once he was let in, who asks."""

    def __init__(self, method: str, headers: Headers) -> None:
        self.method = method
        self.headers = headers
        self.id = request_id_of(headers.get("x-request-id", ""))
        self.caller: Caller | None = None
        self.rate: Rate | None = None
        self.refused: EaselError | None = None
        self.held = 0
        self.client = ""

    @property
    def told(self) -> list[tuple[str, str]]:
        """What every answer says in its metadata."""
        rate: list[tuple[str, str]] = []
        if self.rate is not None:
            rate = [
                ("x-ratelimit-limit-requests", str(self.rate.limit)),
                ("x-ratelimit-remaining-requests", str(self.rate.left)),
            ]
        return [("x-request-id", self.id), *rate]


_CALL: ContextVar[Call] = ContextVar("easel_grpc_call")


class Calls(grpc.aio.ServerInterceptor):
    """`trust_user` says whether a client may name the user that it asks for."""

    def __init__(
        self,
        authenticator: Authenticator,
        reception: Reception,
        metrics: Metrics,
        *,
        trust_user: bool,
        log_requests: bool,
    ) -> None:
        self._authenticator = authenticator
        self._reception = reception
        self._metrics = metrics
        self._trust_user = trust_user
        self._log_requests = log_requests
        self._going_on: dict[asyncio.Task[Any], Call] = {}
        self._ended = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        details = handler_call_details
        handler = await continuation(details)
        # A method that is none was named by the client, who may write what he likes.
        method = details.method if handler is not None else _UNKNOWN
        call = Call(method, _headers(details))
        _CALL.set(call)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._unimplemented)
        try:
            await self._let_in(call)
        except EaselError as error:
            call.refused = error
            return grpc.stream_stream_rpc_method_handler(self._turned_away)
        return self._guarding(handler)

    async def _let_in(self, call: Call) -> None:
        """Raises NotAuthenticated, NotAllowed, RateLimited, StoreUnavailable, ShuttingDown."""
        if self._ended:
            raise ShuttingDown(_GOING)
        access = ACCESS.get(call.method)
        if access == "public":
            return
        if access is None:
            _log.error("method %s does not say whom it lets in", call.method)
            raise NotAllowed("Nobody may come in here.")
        users = call.headers.getall(_USER, [])
        user = users[0] if len(users) == 1 else ""
        call.caller = await self._authenticator.caller(credential(call.headers), access, user)
        if call.method in COUNTED:
            call.rate = self._authenticator.knock(call.caller)

    async def caller(self, user: str = "") -> Caller:
        """Who asks in this call; for `user`, where the message names one and the settings trust it.

        Raises what `Authenticator.caller` raises.
        """
        call = _CALL.get()
        if user and self._trust_user:
            given = credential(call.headers)
            return await self._authenticator.caller(given, ACCESS[call.method], user)
        if call.caller is None:
            raise NotAllowed("Nobody may come in here.")
        return call.caller

    def taken_in(self) -> None:
        """What came with the call counts for its job from now on, or for nobody."""
        call = _CALL.get()
        self._reception.release(call.held)
        call.held = 0

    async def close(self) -> None:
        """Let nobody in any more. Who waited for a job is told what became of it; what then still goes
        on ends with UNAVAILABLE."""
        self._ended = True
        for task, call in self._going_on.items():
            if call.method in _ENDLESS:
                task.cancel()
        await self._last_words()
        for task in self._going_on:
            task.cancel()
        await self._last_words()

    async def _last_words(self) -> None:
        if self._going_on:
            await asyncio.wait(tuple(self._going_on), timeout=_LAST_WORDS)

    # -- around the handlers -----------------------------------------------------------------------

    def _guarding(self, handler: Handler) -> Handler:
        """The same handler. Its message is read inside: one that cannot be is an error of ours."""
        serializer = handler.response_serializer
        if handler.request_streaming:  # only reflection: each of its messages is small
            streamed = cast("Any", handler).stream_stream

            async def stream(requests: Any, context: Context) -> None:
                await self._guarded(context, _written(streamed(requests, context), context))

            return grpc.stream_stream_rpc_method_handler(
                stream, handler.request_deserializer, serializer
            )
        read = cast("Callable[[bytes], Any]", handler.request_deserializer)
        if handler.response_streaming:
            many = cast("Any", handler).unary_stream

            async def unary_stream(raw: bytes, context: Context) -> None:
                async def work() -> None:
                    sent = many(self._read(raw, read), context)
                    # The method of health writes by itself, ours give one message after the other.
                    await (sent if inspect.isawaitable(sent) else _written(sent, context))

                await self._guarded(context, work())

            return grpc.unary_stream_rpc_method_handler(unary_stream, None, serializer)
        one = cast("Any", handler).unary_unary

        async def unary_unary(raw: bytes, context: Context) -> Any:
            async def work() -> Any:
                return await one(self._read(raw, read), context)

            return await self._guarded(context, work())

        return grpc.unary_unary_rpc_method_handler(unary_unary, None, serializer)

    def _read(self, raw: bytes, read: Callable[[bytes], Any]) -> Any:
        """Raises InvalidRequest, UploadsFull."""
        call = _CALL.get()
        if len(raw) > _FREE:
            self._reception.receive(len(raw))
            call.held = len(raw)
        try:
            return read(raw)
        except DecodeError as error:
            raise InvalidRequest("The message cannot be read as the one of this method.") from error

    async def _turned_away(self, _: Any, context: Context) -> None:
        async def work() -> None:
            if (refused := _CALL.get().refused) is not None:
                raise refused

        await self._guarded(context, work())

    async def _unimplemented(self, _: Any, context: Context) -> None:
        call = _CALL.get()
        call.client = _address(context.peer())
        self._tell(call, StatusCode.UNIMPLEMENTED, 0.0)
        await context.abort(StatusCode.UNIMPLEMENTED, "There is no such method.")

    async def _guarded(self, context: Context, work: Awaitable[Any]) -> Any:
        """What the work gives; an error ends the call with its status."""
        call, began, code = _CALL.get(), time.monotonic(), StatusCode.OK
        call.client = _address(context.peer())  # who has left has no address any more
        try:
            return await self._done(call, work)
        except EaselError as error:
            status = status_of(error)
            code = status.code
            told = (*(status.trailing_metadata or ()), *call.told)
            await context.abort(code, status.details or "", told)
        except asyncio.CancelledError:
            left = context.time_remaining()
            late = left is not None and left <= 0
            code = StatusCode.DEADLINE_EXCEEDED if late else StatusCode.CANCELLED
            raise
        finally:
            self._tell(call, code, time.monotonic() - began)

    async def _done(self, call: Call, work: Awaitable[Any]) -> Any:
        """What the work gives. Raises EaselError for whatever goes wrong; a client that leaves, or his
        deadline, cancels it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._going_on[task] = call
        try:
            return await work
        except asyncio.CancelledError:
            if not self._ended:
                raise
            task.uncancel()
            raise ShuttingDown(_GOING) from None
        except (EaselError, grpc.aio.AbortError):
            raise
        except (
            Exception
        ) as error:  # broad: whatever it is, there is an answer and a line in the log
            _log.error("call %s failed", call.id, exc_info=error)
            text = f"The server made a mistake. Its log tells more about {call.id}."
            raise EaselError(text) from error
        finally:
            del self._going_on[task]
            self.taken_in()

    def _tell(self, call: Call, code: StatusCode, seconds: float) -> None:
        self._metrics.called(call.method, code.name)
        if not self._log_requests or call.method.startswith(_HEALTH):
            return
        told = {
            "method": call.method,
            "code": code.name,
            "seconds": round(seconds, 4),
            "request_id": call.id,
            "client": call.client,
        }
        if call.caller is not None and call.caller.key:
            told["key"] = call.caller.key
        _log.info("call", extra=told)


async def greet(context: Context, *more: tuple[str, str]) -> None:
    """Send what every answer says in its metadata, and `more`, before the answer."""
    await context.send_initial_metadata((*_CALL.get().told, *more))


async def _written(messages: AsyncGenerator[Any, None], context: Context) -> None:
    """Send them one by one. gRPC's own loop leaves a generator that waits to be sent to the garbage
    collector when the client goes, where a job would go on drawing for nobody."""
    async with contextlib.aclosing(messages):
        async for message in messages:
            await context.write(message)


def _headers(details: grpc.HandlerCallDetails) -> Headers:
    given = cast("Iterable[tuple[str, str | bytes]]", details.invocation_metadata or ())
    return Headers(
        [(name.encode(), value.encode()) for name, value in given if isinstance(value, str)]
    )


def _address(peer: str) -> str:
    """The client's address in what gRPC calls it, such as `ipv4:127.0.0.1:4711`."""
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
