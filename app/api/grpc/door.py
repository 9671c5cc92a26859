"""The door itself: a server of gRPC beside that of HTTP, with health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from app.api._door import CannotOpen
from app.api.grpc import starweave_pb2 as pb
from app.api.grpc.calls import Calls, Context
from app.api.grpc.images import ImageGeneration
from app.api.grpc.jobs import Jobs
from app.service import ImageService

_SERVICES = pb.DESCRIPTOR.services_by_name
IMAGES, JOBS = _SERVICES["ImageGenerationService"], _SERVICES["JobService"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_LOOK = 0.25
"""Seconds between two looks at whether a picture can be made."""

_GRACE = 5.0
"""Seconds after which calls are cut off that did not end when they were told to."""


class GrpcDoor:
    """`address` is host and port; `max_message` bytes of what a client sends; `heartbeat` seconds
    between pings, which find out clients that vanished; `tls` the files of certificate and key."""

    def __init__(
        self,
        service: ImageService,
        calls: Calls,
        address: str,
        *,
        max_message: int,
        heartbeat: float,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self._service = service
        self._calls = calls
        self._address = address
        self._tls = tls
        self._options = [
            ("grpc.so_reuseport", 0),  # or a second server would take half of the calls
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", max(1000, round(heartbeat * 1000))),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A client may ping as well while it waits for a picture.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ]
        self._server: grpc.aio.Server | None = None
        self._health = _Health(self._look)
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        credentials = self._credentials()
        server = grpc.aio.server(interceptors=[self._calls], options=self._options)
        images = ImageGeneration(self._service, self._calls)
        jobs = Jobs(self._service, self._calls)
        server.add_generic_rpc_handlers(
            (_handlers(IMAGES, images.methods), _handlers(JOBS, jobs.methods))
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (IMAGES.full_name, JOBS.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            if credentials is None:
                server.add_insecure_port(self._address)
            else:
                server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            await server.stop(None)
            raise CannotOpen(
                f"{self._address} cannot be used for gRPC: the port is taken, or the address is none "
                "of this machine's"
            ) from error
        await self._health.set(JOBS.full_name, _SERVING)
        await self._look()
        await server.start()
        self._server = server
        self._looking = asyncio.create_task(self._look_on())

    async def close(self) -> None:
        if self._server is None:
            return
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        with contextlib.suppress(TimeoutError):  # one who watches and does not read
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), 0.5)
        stopping = asyncio.create_task(self._server.stop(_GRACE))
        await asyncio.sleep(0)  # from here on nobody comes in any more
        await self._calls.close()
        await stopping

    def _credentials(self) -> grpc.ServerCredentials | None:
        """Raises CannotOpen."""
        if self._tls is None:
            return None
        certificate, key = self._tls
        try:
            # gRPC itself would only say that the port cannot be used.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=b"")
            return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        except ssl.SSLError as error:
            raise CannotOpen(
                "grpc_certificate and grpc_key are no certificate and its open key in PEM"
            ) from error
        except OSError as error:
            raise CannotOpen(f"grpc_certificate or grpc_key cannot be read: {error}") from error

    # -- health ------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await self._look()

    async def _look(self) -> None:
        status = _SERVING if self._service.ready else _NOT_SERVING
        for name in ("", IMAGES.full_name):
            await self._health.set(name, status)


class _Health(health.aio.HealthServicer):
    """Whoever asks is told how it stands at that moment; who watches, soon after it changed."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._look = look

    async def Check(  # noqa: N802 - the library's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        await self._look()
        return await super().Check(request, context)


def _handlers(
    service: ServiceDescriptor, methods: Mapping[str, Callable[..., Any]]
) -> grpc.GenericRpcHandler:
    made = {}
    for method in service.methods:
        take = message_factory.GetMessageClass(method.input_type)
        give = message_factory.GetMessageClass(method.output_type)
        kind = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        made[method.name] = kind(
            methods[method.name],
            request_deserializer=take.FromString,
            response_serializer=give.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, made)
