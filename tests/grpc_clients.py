"""Clients of the gRPC door: one whose code is made of the .proto, as users make theirs, and one that
knows nothing but the server's reflection."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from PIL import Image

from tests.gateway import Gateway, free_port, running_gateway

PROTO = Path(__file__).parent.parent / "app" / "api" / "grpc" / "starweave.proto"

MOST = 24_000_000
"""Bytes that the server below takes of a message."""

ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class Stubs:
    """The modules that protoc makes for clients."""

    messages: ModuleType
    services: ModuleType


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    folder = tmp_path_factory.mktemp("stubs")
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}")
    out = (f"--python_out={folder}", f"--grpc_python_out={folder}")
    subprocess.run([*protoc, *out, PROTO.name], check=True, timeout=60)
    sys.path.insert(0, str(folder))
    try:
        names = ("starweave_pb2", "starweave_pb2_grpc")
        return Stubs(*map(importlib.import_module, names))
    finally:
        sys.path.remove(str(folder))


class Client:
    """`headers` go with every call; `root` is the certificate of a server that speaks TLS."""

    def __init__(
        self, stubs: Stubs, port: int, headers: dict[str, str] | None = None, root: bytes = b""
    ) -> None:
        address = f"127.0.0.1:{port}"
        if root:
            trusted = grpc.ssl_channel_credentials(root)
            channel = grpc.secure_channel(address, trusted, options=ANY_SIZE)
        else:
            channel = grpc.insecure_channel(address, options=ANY_SIZE)
        self.bare = channel
        self.channel = grpc.intercept_channel(channel, _Headers(headers or {}))
        self.pb: Any = stubs.messages
        self.images = stubs.services.ImageGenerationServiceStub(self.channel)
        self.jobs = stubs.services.JobServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.bare.close()

    def request(self, prompt: Any = "a red circle", **given: Any) -> Any:
        """An `ImageRequest`: fields of its own, and those of its settings."""
        own = set(self.pb.ImageRequest.DESCRIPTOR.fields_by_name)
        settings = {name: value for name, value in given.items() if name not in own}
        more = {name: value for name, value in given.items() if name in own}
        return self.pb.ImageRequest(
            prompt=prompt, settings=self.pb.ImageSettings(**settings), **more
        )

    def job(self, job_id: str, **given: Any) -> Any:
        return self.jobs.GetJob(self.pb.JobRequest(job_id=job_id, **given))

    def watch(self, job_id: str, **given: Any) -> Any:
        return self.jobs.WatchJob(self.pb.WatchJobRequest(job_id=job_id, **given))

    def cancel(self, job_id: str) -> Any:
        return self.jobs.CancelJob(self.pb.JobRequest(job_id=job_id))


class _Headers(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = tuple(headers.items())

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_headers(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_headers(details), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(self._with_headers(details), requests)

    def _with_headers(self, details: Any) -> Any:
        return details._replace(metadata=(*(details.metadata or ()), *self._headers))


class Curl:
    """What grpcurl does: everything it knows, it asks the server for."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._known = ProtoReflectionDescriptorDatabase(channel)
        self._pool = descriptor_pool.DescriptorPool(self._known)

    def methods(self) -> set[str]:
        return {
            f"/{service}/{method.name}"
            for service in self._known.get_services()
            for method in self._pool.FindServiceByName(service).methods
        }

    def call(self, name: str, **given: Any) -> dict[str, Any]:
        """A unary call, with JSON in and out."""
        service, _, method_name = name.rpartition("/")
        method = self._pool.FindServiceByName(service).FindMethodByName(method_name)
        take = message_factory.GetMessageClass(method.input_type)
        give = message_factory.GetMessageClass(method.output_type)
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/{name}",
            request_serializer=take.SerializeToString,
            response_deserializer=give.FromString,
        )
        answer = call(ParseDict(given, take()))
        told: dict[str, Any] = MessageToDict(answer, preserving_proto_field_name=True)
        return told


@dataclass
class Refusal:
    """What a call ended with: `retry` in seconds."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str], ...]
    reason: str = ""
    param: str = ""
    field: str = ""
    retry: int | None = None


def refusal(call: Callable[[], Any]) -> Refusal:
    """How the call fails, if it is a stream while it is read."""
    with pytest.raises(grpc.RpcError) as raised:
        answer = call()
        if hasattr(answer, "__next__"):
            list(answer)
    return refusal_of(raised.value)


def refusal_of(error: Any) -> Refusal:
    told = Refusal(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "easel"
            told.reason, told.param = info.reason, info.metadata.get("param", "")
        elif detail.Unpack(bad):
            [violation] = bad.field_violations
            told.field = violation.field
        elif detail.Unpack(retry):
            told.retry = retry.retry_delay.seconds
    return told


@contextmanager
def serving_grpc(data: Path, environment: dict[str, str]) -> Iterator[tuple[Gateway, int]]:
    """A gateway that speaks gRPC as well, and at which port."""
    port = free_port()
    with running_gateway(data, {**environment, "EASEL_GRPC_PORT": str(port)}) as gateway:
        yield gateway, port


def noise(side: int) -> bytes:
    """A PNG with about three bytes for each pixel of a square."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, int]]:
    environment = {"EASEL_BATCHING": "false", "EASEL_MAX_UPLOAD": str(MOST)}
    with serving_grpc(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


@pytest.fixture(scope="session")
def client(serving: tuple[Gateway, int], stubs: Stubs) -> Iterator[Client]:
    with Client(stubs, serving[1]) as made:
        yield made


@pytest.fixture(scope="session")
def http(serving: tuple[Gateway, int]) -> Iterator[httpx.Client]:
    with serving[0].client() as client:
        yield client
