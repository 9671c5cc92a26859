"""What is said over NATS: what a message asks for, and JSON for what it gets."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from litestar.datastructures import Headers
from nats.aio.msg import Msg
from pydantic import ValidationError

from app.api._access import credential
from app.api._fields import refused
from app.api._http import envelope_of
from app.api._jobs import told
from app.api._vision import VisionBody
from app.domain.errors import EaselError, InvalidRequest, ModelNotFetched, Unavailable
from app.domain.events import NumberedEvent
from app.domain.job import Job

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_OURS = "nats:"
"""Before a client's name for a job, so that it is no `Idempotency-Key` of another door."""

_LARGEST_PREVIEW = 96 * 1024
"""Characters of a preview in base64; a larger one is left out of the progress."""


def credential_in(message: Msg) -> str:
    """The key that was sent, in the headers that HTTP has for it; "" for none."""
    return credential(_headers(message))


def wants_progress(message: Msg) -> bool:
    """Whether the progress is to come to the inbox, too, before the answer."""
    return _headers(message).get("easel-progress", "").lower() == "inbox"


def name_in(message: Msg) -> str | None:
    """The client's own name for its request; an equal request of that name is the same one.

    Raises InvalidRequest.
    """
    name = _headers(message).get("nats-msg-id")
    if name is not None and not _KEY.fullmatch(name):
        raise InvalidRequest(
            "A Nats-Msg-Id is 1 to 255 visible ASCII characters.", param="Nats-Msg-Id"
        )
    return name


def key_of(name: str | None) -> str | None:
    """The key under which a job of that name is known here."""
    return None if name is None else f"{_OURS}{name}"


def name_of(job: Job) -> str | None:
    """The name that its client gave to a job."""
    return job.key.removeprefix(_OURS) if job.key else None


def read_body(data: bytes, largest: int) -> tuple[VisionBody, str]:
    """What is to be drawn, and a digest of it that is the same for all ways to write it.

    Raises InvalidRequest.
    """
    if len(data) > largest:
        raise InvalidRequest("The body is larger than the server allows.", param="body")
    try:
        given = msgspec.json.decode(data)
        plain = msgspec.json.encode(given, order="deterministic")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        given, plain = error, b""
    if not isinstance(given, dict):
        raise InvalidRequest("The body cannot be read as a JSON object.", param="body")
    try:
        return VisionBody.model_validate(given), hashlib.sha256(plain).hexdigest()
    except ValidationError as error:
        raise refused(error) from error


def error_told(error: EaselError) -> dict[str, Any]:
    """The envelope of every door, with the seconds after which to try again where there are any."""
    body = envelope_of(error)
    if isinstance(error, Unavailable | ModelNotFetched):
        body["error"]["retry_after"] = error.retry_after
    return body


def progress_told(job: Job, numbered: NumberedEvent) -> bytes:
    """One event of a job; a large preview is left out."""
    event, data = told(job.id, numbered)
    if len(data.get("preview") or "") > _LARGEST_PREVIEW:
        data["preview"] = None
    said = {"event": event, "number": numbered.number, "key": name_of(job), **data}
    return msgspec.json.encode(said)


def result_told(job: Job, error: EaselError | None, picture: dict[str, Any]) -> dict[str, Any]:
    """What became of a job, for whoever listens: no words of the prompt."""
    request = job.request
    width, height = request.picture_sides
    return {
        "job_id": job.id,
        "key": name_of(job),
        "status": job.status,
        "model": request.model,
        "requested_model": request.asked,
        "seed": request.seed,
        "width": width,
        "height": height,
        "format": request.output_format,
        "seconds": round(job.changed - job.created, 3),
        **picture,
        "error": None if error is None else error_told(error)["error"],
    }


def refusal_told(name: str | None, error: EaselError) -> dict[str, Any]:
    """That a request without an inbox made no job."""
    return {"job_id": None, "key": name, "status": "refused", **error_told(error)}


def _headers(message: Msg) -> Headers:
    return Headers({name.lower(): value for name, value in (message.headers or {}).items()})
