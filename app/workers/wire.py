"""What the gateway and a worker say to each other, and how it is put on a socket.

Every variant is one tagged MessagePack map behind a four-byte big-endian length. Never pickle: a
worker that went wrong can send nonsense, but nothing that runs.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgspec

from app.domain.events import EngineEvent
from app.domain.model_card import ModelCard
from app.workers.base import RunSpec, Verb

MAX_FRAME = 512 * 1024 * 1024
"""Bytes; a longer frame means that the stream is out of step, and the worker is given up."""


class _Frame(msgspec.Struct, frozen=True, tag_field="type"):
    pass


# -- to the worker ---------------------------------------------------------------------------------


class StartRun(_Frame, frozen=True, tag="start_run"):
    spec: RunSpec


class CancelRuns(_Frame, frozen=True, tag="cancel_runs"):
    """Stop these at their next step; a run that has not begun does not begin."""

    run_ids: tuple[str, ...]


class Call(_Frame, frozen=True, tag="call"):
    """Something done with a model outside of any run; answered by `CallEnded`."""

    call_id: int
    verb: Verb
    card: ModelCard


ToWorker = StartRun | CancelRuns | Call

# -- from the worker -------------------------------------------------------------------------------


class Ready(_Frame, frozen=True, tag="ready"):
    """The worker takes runs; `memory` is its device's, in bytes (0: not known), and `room` what of it
    models may share (0: no limit)."""

    pid: int
    memory: int
    room: int = 0


class Held(_Frame, frozen=True, tag="held"):
    """These models are loaded now and take `used` bytes of the device; `parked` ones wait in the
    host's memory."""

    models: tuple[str, ...]
    parked: tuple[str, ...] = ()
    used: int = 0


class Happened(_Frame, frozen=True, tag="happened"):
    run_id: str
    event: EngineEvent


class RunEnded(_Frame, frozen=True, tag="run_ended"):
    """The run is over: well when `code` is None, else with that code of `domain.errors`."""

    run_id: str
    code: str | None = None
    message: str = ""
    param: str | None = None


class CallEnded(_Frame, frozen=True, tag="call_ended"):
    call_id: int
    code: str | None = None
    message: str = ""
    answer: dict[int, float] = {}


FromWorker = Ready | Held | Happened | RunEnded | CallEnded


def _plain(value: object) -> Any:
    if isinstance(value, ModelCard):
        return value.model_dump(mode="json")
    raise NotImplementedError(type(value).__name__)


def _rich(kind: type, value: Any) -> Any:
    if kind is ModelCard:
        return ModelCard.model_validate(value)
    raise NotImplementedError(kind.__name__)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_to_worker = msgspec.msgpack.Decoder(ToWorker, dec_hook=_rich)
_from_worker = msgspec.msgpack.Decoder(FromWorker, dec_hook=_rich)


def frame(message: ToWorker | FromWorker) -> bytes:
    body = _encoder.encode(message)
    return struct.pack(">I", len(body)) + body


def read_blocking(sock: socket.socket) -> ToWorker | None:
    """The next message on the worker's side; None when the gateway is gone."""
    head = _exactly(sock, 4)
    body = _exactly(sock, struct.unpack(">I", head)[0]) if head else None
    return _to_worker.decode(body) if body else None


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


async def read(reader: asyncio.StreamReader) -> FromWorker:
    """The next message on the gateway's side.

    Raises:
        EOFError: the worker is gone (`asyncio.IncompleteReadError` is one).
        ValueError: what came is no frame of ours (`msgspec.DecodeError` is one).
    """
    length = struct.unpack(">I", await reader.readexactly(4))[0]
    if length > MAX_FRAME:
        raise ValueError("frame too long")
    message: FromWorker = _from_worker.decode(await reader.readexactly(length))
    return message
