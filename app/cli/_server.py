"""A server as the shell speaks to it: questions, and events that go on over a broken connection."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, Self

import httpx
import msgspec
import typer

import app
from app.cli._shell import own_address, own_pass, shown
from app.domain.errors import (
    EaselError,
    InvalidRequest,
    NotFound,
    QueueFull,
    QuotaSpent,
    RateLimited,
    Unavailable,
    UploadsFull,
    error_from,
)
from app.domain.events import TERMINAL, JobEvent, NumberedEvent
from app.domain.job import Status
from app.settings import Settings, load_settings

Json = dict[str, Any]

At = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="EASEL_SERVER",
        show_default=False,
        help='Ask this server, such as http://127.0.0.1:5199; "" is none.',
    ),
]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        envvar="EASEL_API_KEY",
        show_default=False,
        help="Its key. Options show in lists of processes: better in the environment.",
    ),
]

_LATER = {kind.code: kind for kind in (QueueFull, UploadsFull, RateLimited, QuotaSpent)}
_ID = re.compile(r"[0-9A-Za-z]{1,64}")
_NAMES: set[str] = {kind.__struct_config__.tag for kind in JobEvent.__args__}

_ANSWER, _PICTURE = 64 * 2**20, 512 * 2**20
"""Bytes of an answer, or an event, and of a picture. More is nonsense."""

_PATIENCE = 60.0
"""Seconds for which a server that fell silent is called again."""

_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
_TIMEOUT = httpx.Timeout(30, connect=10)
_STREAM_TIMEOUT = httpx.Timeout(60, connect=10)
"""Seconds; a stream that is well has a heartbeat more often."""

OPENED = ("", Json())
"""What `Server.feed` gives first, and again after a broken connection."""


class NoEasel(EaselError):
    """What answers is no server of ours, or one of another time."""


class Standing(msgspec.Struct):
    """A job as a server tells it, as far as it is shown here."""

    id: str
    status: Status
    model: str
    message: str
    fraction: float
    eta_seconds: float

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


class Server:
    """One server. What comes from it is checked, and never taken for more than text and numbers.

    What is asked for raises the EaselError that the server answers with, `Unavailable` where nobody
    answers, and `NoEasel` for what no Easel would say.
    """

    def __init__(self, address: str, headers: Callable[[], Mapping[str, str]]) -> None:
        """`headers` show who asks; they are made anew for each request: a pass is soon over.

        Raises InvalidRequest.
        """
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _no_address(address) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise _no_address(address)
        port = f":{url.port}" if url.port else ""
        host = f"[{url.host}]" if ":" in url.host else url.host
        self.name = shown(f"{url.scheme}://{host}{port}")
        self._headers = headers
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(base_url=url, limits=limits, trust_env=False)

    @classmethod
    def at(cls, address: str, key: str) -> Server:
        """Raises InvalidRequest."""
        if not key.isascii() or not key.isprintable():
            raise InvalidRequest("A key is of visible ASCII characters.", param="--key")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return cls(address, lambda: headers)

    @classmethod
    def own(cls, settings: Settings) -> Server:
        """The one that runs with these settings; who may read its folder may see all of it."""
        return cls(own_address(settings), lambda: own_pass(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        timeout: httpx.Timeout | float = _TIMEOUT,
        **more: Any,
    ) -> Json:
        """The JSON object that it answers with."""
        with self._answer(method, path, timeout=timeout, **more) as answer:
            return self._object(_read(answer, _ANSWER))

    def job_of(self, method: str, path: str, **more: Any) -> str:
        """Send something that becomes a job, and leave it there; the job's id."""
        with self._answer(method, path, **more) as answer:
            return self._id(answer.headers.get("x-easel-job"))

    def submit(self, path: str, body: Json | None = None) -> Json:
        """A new job."""
        told = self.ask("POST", path, json=body)
        self._id(told.get("id"))
        return told

    def listed(self, path: str, name: str, **more: Any) -> list[Json]:
        """The objects that it answers with under this name."""
        found = self.ask("GET", path, **more).get(name)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self.nonsense()
        return found

    def jobs(self, asked: Mapping[str, str | int]) -> list[Json]:
        """The newest of the jobs that fit what is asked, as the server tells them."""
        return self.listed("/jobs", "jobs", params=asked)

    def standing(self, told: Json) -> Standing:
        """The same, of one of them."""
        try:
            job = msgspec.convert(told, Standing)
        except msgspec.ValidationError as error:
            raise self.nonsense() from error
        self._id(job.id)
        return job

    def picture(self, image_id: str) -> bytes:
        with self._answer("GET", f"/images/{self._id(image_id)}") as answer:
            return _read(answer, _PICTURE)

    def follow(
        self, job_id: str, trouble: Callable[[bool], object] = lambda _: None
    ) -> Iterator[NumberedEvent]:
        """Each event of a job once, to the terminal one, whatever becomes of connections and of the
        server meanwhile. `trouble` is told when it falls silent, and when it is back."""
        after = 0
        for name, data, number in self._again(f"/jobs/{checked(job_id)}/events", trouble):
            if not name:
                continue
            if number is None:
                raise self.nonsense()
            if number <= after:
                continue
            after = number
            event = self.event(name, data, number)
            if event is not None:
                yield event
                if isinstance(event.event, TERMINAL):
                    return

    def feed(
        self, trouble: Callable[[bool], object] = lambda _: None
    ) -> Iterator[tuple[str, Json] | None]:
        """News of all jobs of who asks, without end: `OPENED`, how each one stands (`job`), then every
        event; and the same after a broken connection. None is a silence: all that is known was told."""
        for name, data, _ in self._again("/jobs/events", trouble):
            yield None if name is None else (name, data) if name else OPENED

    def _again(
        self, path: str, trouble: Callable[[bool], object]
    ) -> Iterator[tuple[str | None, Json, int | None]]:
        after, tries, silent = 0, 0, time.monotonic()
        while True:
            try:
                headers = {"last-event-id": str(after)} if after else {}
                with self._answer("GET", path, timeout=_STREAM_TIMEOUT, headers=headers) as answer:
                    for name, data, number in self._frames(answer):
                        if tries:
                            trouble(False)
                        tries, silent = 0, time.monotonic()
                        after = after if number is None else number
                        yield name, data, number
            except Unavailable:
                if time.monotonic() - silent > _PATIENCE:
                    raise
            if not tries:
                trouble(True)
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _frames(self, answer: httpx.Response) -> Iterator[tuple[str | None, Json, int | None]]:
        """Name, data and number of each event; the name is None for a heartbeat, "" for a comment."""
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise self.nonsense()
        buffer = bytearray()
        for piece in answer.iter_bytes():
            seen = max(0, len(buffer) - 1)
            buffer += piece
            while (end := buffer.find(b"\n\n", seen)) >= 0:
                frame = bytes(buffer[:end])
                del buffer[: end + 2]
                seen = 0
                yield self._fields(frame)
            if len(buffer) > _ANSWER:
                raise self.nonsense()

    def _fields(self, frame: bytes) -> tuple[str | None, Json, int | None]:
        fields: dict[bytes, bytes] = {}
        for line in frame.split(b"\n"):
            key, _, value = line.partition(b": ")
            fields[key] = value
        if b"event" not in fields:
            return (None if frame == b": heartbeat" else ""), {}, None
        number = fields.get(b"id")
        if number is not None and not re.fullmatch(rb"[0-9]{1,9}", number):
            raise self.nonsense()
        name, data = fields[b"event"].decode("utf-8", "replace"), fields.get(b"data", b"")
        return name, self._object(data), None if number is None else int(number)

    def event(self, name: str, data: Json, number: int) -> NumberedEvent | None:
        """The event that a server tells so; None for one that this version does not know."""
        if name not in _NAMES:
            return None
        try:
            event = msgspec.convert({**data, "type": name}, JobEvent)
            return NumberedEvent(number, float(data["timestamp"]), event)
        except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
            raise self.nonsense() from error

    def _object(self, data: bytes) -> Json:
        try:
            return msgspec.json.decode(data, type=Json)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.nonsense() from error

    def _id(self, given: object) -> str:
        if not isinstance(given, str) or not _ID.fullmatch(given):
            raise self.nonsense()
        return given

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        *,
        timeout: httpx.Timeout | float = _TIMEOUT,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Iterator[httpx.Response]:
        """A good answer, whose body is still to be read. Raises what this class says."""
        try:
            given = {**self._headers(), **(headers or {})}
            with self._client.stream(
                method, path, timeout=timeout, headers=given, **more
            ) as answer:
                if not answer.is_success:
                    raise self._refusal(answer)
                yield answer
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise Unavailable(f"No server answers at {self.name}.") from error

    def _refusal(self, answer: httpx.Response) -> EaselError:
        body = _read(answer, _ANSWER)
        if answer.status_code in (502, 503, 504) and not body.startswith(b"{"):  # of a proxy
            return Unavailable(f"No server answers at {self.name}.")
        told = self._object(body).get("error")
        if not isinstance(told, dict) or not isinstance(told.get("message"), str):
            return self.nonsense()
        code, param = str(told.get("code")), told.get("param")
        param = shown(param) if isinstance(param, str) else None
        if answer.status_code == 401:
            wrong = "authorization" in answer.request.headers
            said = "does not take this key" if wrong else "needs a key"
            return error_from(code, f"The server at {self.name} {said}; EASEL_API_KEY holds one.")
        if code == "method_not_allowed" or (code, param) == ("not_found", None):
            return NoEasel(
                f"The server at {self.name} does not know this: "
                f"it may be older than this shell, which is Easel {app.__version__}."
            )
        later = _LATER.get(code)
        if later is not None:
            return later(shown(told["message"]), retry_after=5)
        if answer.status_code == 503 and code != "model_not_fetched":
            return Unavailable(shown(told["message"]))
        if answer.status_code in (400, 404, 413, 415, 422) and code != "cancelled":
            return _refused(code, shown(told["message"]), param)
        return error_from(code, shown(told["message"]), param)

    def nonsense(self) -> NoEasel:
        return NoEasel(f"What answers at {self.name} is no Easel, or none that this shell knows.")


@contextmanager
def server_at(address: str, key: str) -> Iterator[Server | None]:
    """The server that was asked for, if any."""
    with Server.at(address, key) if address else nullcontext() as server:
        yield server


@contextmanager
def server_or_own(address: str, key: str) -> Iterator[Server]:
    """The server that was asked for, or else the one that runs with the settings."""
    with Server.at(address, key) if address else Server.own(load_settings()) as server:
        yield server


def checked(job_id: str) -> str:
    """Raises NotFound for what is no job's id."""
    if not _ID.fullmatch(job_id):
        raise NotFound("There is no such job.", param="id")
    return job_id


def _refused(code: str, message: str, param: str | None) -> EaselError:
    known = error_from(code, message, param)
    return known if isinstance(known, InvalidRequest) else InvalidRequest(message, param=param)


def _read(answer: httpx.Response, most: int) -> bytes:
    data = bytearray()
    for piece in answer.iter_bytes():
        data += piece
        if len(data) > most:
            raise Unavailable(f"What {shown(str(answer.url.host))} answers has no end.")
    return bytes(data)


def _no_address(address: str) -> InvalidRequest:
    return InvalidRequest(
        f"A server is like http://127.0.0.1:5199, and not {shown(address)}.", param="--server"
    )
