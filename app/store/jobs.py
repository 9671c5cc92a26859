"""Jobs and their events, for good.

What you can rely on: an accepted job is readable until it is deleted, also after a crash; its events
are numbered from 1 without gaps, and an event that was taken in is never lost or changed; a job ends
once, and together with its terminal event; an attempt that a later one has replaced changes nothing any
more; that a webhook is owed a job's end is known from that end until it is settled.

Stored events hold no previews. Who follows a job gets them from memory, and after a restart the job is
drawn anew and shows new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.errors import NotFound
from app.domain.events import JobEvent, NumberedEvent, Progressed, Started
from app.domain.job import Job
from app.store.database import Database
from app.store.errors import StoreUnavailable
from app.store.schema import DETAILS, EVENTS, IMAGES, INPUTS, JOBS, WEBHOOKS_DUE
from app.store.words import words_of

PictureState = Literal["stored", "not_stored", "deleted"]

_SECONDS_A_DAY = 86_400
_INPUTS = ("image", "mask_image", "control_image")
_encode = msgspec.msgpack.Encoder().encode
_job_of = msgspec.msgpack.Decoder(Job).decode
_event_of = msgspec.msgpack.Decoder[JobEvent](JobEvent).decode


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a finished picture; `digest` is the SHA-256 of its `bytes` bytes."""

    id: str
    index: int
    seed: int
    media_type: str
    bytes: int
    digest: str
    width: int
    height: int
    favourite: bool = False
    state: PictureState = "stored"


class News(msgspec.Struct, frozen=True):
    """An event to be stored, seen by attempt `attempt`; with an `ImageReady`, its picture."""

    job_id: str
    attempt: int
    event: NumberedEvent
    picture: Picture | None = None


class _Known(msgspec.Struct):
    """A job's row while events are taken in."""

    seq: int
    job: Job
    last: int
    started: float | None
    waited: float | None
    bytes: int
    changed: bool = False


# Made once: in the making of statements lies most of what SQLAlchemy costs.
_KNOW = (
    select(*(JOBS.c.id, JOBS.c.seq, DETAILS.c.value, JOBS.c.last_event, JOBS.c.started))
    .add_columns(JOBS.c.waited, JOBS.c.bytes)
    .join(DETAILS)
    .where(JOBS.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(JOBS.c.seq)  # everybody locks in this order
    .with_for_update(of=JOBS)
)
_TELL = insert(EVENTS)
_APPEND = (
    update(JOBS)
    .where(JOBS.c.seq == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in (
        "status", "attempt", "last_event", "changed", "waited", "started", "ended", "bytes",
        "model", "size",
    )})
)  # fmt: skip

_DETAIL = insert(DETAILS)
_RENEW = (
    update(DETAILS).where(DETAILS.c.job == bindparam("of")).values(value=bindparam("new_value"))
)
_ACCEPT = {
    # Where it is there already, a commit went through whose answer was lost.
    name: dialect.insert(JOBS).on_conflict_do_nothing(index_elements=["id"]).returning(JOBS.c.seq)
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


class JobStore:
    """Jobs in a database. Raises StoreUnavailable and StorageFull wherever it writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._doubtful: list[str] = []

    async def accept(self, job: Job, *, within: float = 2.0) -> None:
        """Store a new job; it is committed when this returns.

        When it cannot be within `within` seconds it is refused, and no row of it stays behind.
        """
        doubtful = tuple(self._doubtful)

        def work(connection: Connection) -> None:
            if doubtful:
                connection.execute(delete(JOBS).where(JOBS.c.id.in_(doubtful)))
            _insert(connection, job)

        try:
            async with asyncio.timeout(within):
                await self._database.write(work)
        except TimeoutError as error:
            self._doubtful.append(job.id)
            raise StoreUnavailable("The store does not answer now.") from error
        except (StoreUnavailable, asyncio.CancelledError):
            self._doubtful.append(job.id)
            raise
        self._doubtful = [one for one in self._doubtful if one not in doubtful]

    async def append(self, news: Sequence[News]) -> list[bool]:
        """Store events, all in one transaction; tell which of them count.

        One does not count when its job is unknown or has ended, when its number is not the next, or
        when its attempt is not the latest (a `Started` begins a later one). One that is stored already
        counts: after an error, the same news may be brought again.
        """
        return await self._database.write(lambda connection: _append(connection, news))

    async def get(self, job_id: str) -> Job:
        """A job as of its last stored event, without input pictures. Raises NotFound."""
        return await self._database.read(lambda connection: _stored_job(connection, job_id))

    async def with_inputs(self, job_id: str) -> Job:
        """The same, with its input pictures: it can be drawn again. Raises NotFound."""

        def work(connection: Connection) -> Job:
            return _with_inputs(connection, _row(connection, job_id))

        return await self._database.read(work)

    async def events(self, job_id: str, after: int = 0) -> list[NumberedEvent]:
        """Its stored events numbered above `after`, in order. Raises NotFound."""

        def work(connection: Connection) -> list[NumberedEvent]:
            found = connection.execute(
                select(EVENTS.c.number, EVENTS.c.timestamp, EVENTS.c.event)
                .where(EVENTS.c.job == _row(connection, job_id).seq, EVENTS.c.number > after)
                .order_by(EVENTS.c.number)
            )
            return [NumberedEvent(row[0], row[1], _event_of(row[2])) for row in found]

        return await self._database.read(work)

    async def unfinished(self) -> list[Job]:
        """Jobs that have not ended, oldest first, with their input pictures."""

        def work(connection: Connection) -> list[Job]:
            open_ = JOBS.c.status.in_(("queued", "running"))
            found = connection.execute(
                select(JOBS.c.seq, DETAILS.c.value).join(DETAILS).where(open_).order_by(JOBS.c.seq)
            )
            return [_with_inputs(connection, row) for row in found.all()]

        return await self._database.read(work)

    async def webhooks_due(self, since: float) -> list[Job]:
        """Jobs that ended after `since` and whose webhooks are owed their ends, oldest first. Of those
        before, nothing is owed any more."""
        old = select(JOBS.c.seq).where(JOBS.c.ended < since)

        def work(connection: Connection) -> list[Job]:
            connection.execute(delete(WEBHOOKS_DUE).where(WEBHOOKS_DUE.c.job.in_(old)))
            found = connection.execute(
                select(DETAILS.c.value)
                .join(WEBHOOKS_DUE, WEBHOOKS_DUE.c.job == DETAILS.c.job)
                .order_by(DETAILS.c.job)
            )
            return [_job_of(value) for value in found.scalars()]

        return await self._database.write(work)

    async def webhook_settled(self, job_id: str) -> None:
        """Its webhook has heard of the end, or never will."""
        of = select(JOBS.c.seq).where(JOBS.c.id == job_id)

        def work(connection: Connection) -> None:
            connection.execute(delete(WEBHOOKS_DUE).where(WEBHOOKS_DUE.c.job.in_(of)))

        await self._database.write(work)


def _row(connection: Connection, job_id: str) -> Row[Any, Any]:
    row = connection.execute(
        select(JOBS.c.seq, DETAILS.c.value).join(DETAILS).where(JOBS.c.id == job_id)
    ).one_or_none()
    if row is None:
        raise NotFound("There is no such job.", param="id")
    return row


def _stored_job(connection: Connection, job_id: str) -> Job:
    job: Job = _job_of(_row(connection, job_id).value)
    return job


def _with_inputs(connection: Connection, row: Row[Any, Any]) -> Job:
    job: Job = _job_of(row.value)
    found = connection.execute(select(INPUTS.c.name, INPUTS.c.data).where(INPUTS.c.job == row.seq))
    inputs = {name: bytes(data) for name, data in found}
    job.request = msgspec.structs.replace(job.request, **inputs)
    return job


def _insert(connection: Connection, job: Job) -> None:
    inputs = {name: data for name in _INPUTS if (data := getattr(job.request, name)) is not None}
    kept = msgspec.structs.replace(job, request=job.request.without_pictures())
    seq = connection.scalar(
        _ACCEPT[connection.dialect.name],
        {
            "id": job.id,
            "owner": job.owner,
            "door": job.door,
            "model": job.request.model,
            "size": job.request.size,
            "status": job.status,
            "priority": job.terms.priority,
            "attempt": job.attempt,
            "last_event": 0,
            "created": job.created,
            "changed": job.changed,
            "day": int(job.created // _SECONDS_A_DAY),
            "bytes": sum(map(len, inputs.values())),
        },
    )
    if seq is None:
        return
    words = " ".join(words_of(job.request.prompt))
    connection.execute(_DETAIL, {"job": seq, "words": words, "value": _encode(kept)})
    if inputs:
        rows = [{"job": seq, "name": name, "data": data} for name, data in inputs.items()]
        connection.execute(insert(INPUTS), rows)


def _append(connection: Connection, news: Sequence[News]) -> list[bool]:
    found = connection.execute(_KNOW, {"ids": sorted({one.job_id for one in news})})
    known = {row[0]: _Known(row[1], _job_of(row[2]), *row[3:]) for row in found}
    events: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    told: list[bool] = []
    for one in news:
        at = known.get(one.job_id)
        if at is None or not _counts(at, one):
            told.append(at is not None and _is_there(connection, at.seq, one.event, events))
            continue
        _take(at, one)
        events.append(_stored(at.seq, one.event))
        if one.picture is not None:
            images.append(msgspec.structs.asdict(one.picture) | {"job": at.seq})
        told.append(True)
    if events:
        connection.execute(_TELL, events)
        changed = [at for at in known.values() if at.changed]
        connection.execute(_APPEND, [_changed(at) for at in changed])
        values = [{"of": at.seq, "new_value": _encode(at.job)} for at in changed]
        connection.execute(_RENEW, values)
        owed = [{"job": at.seq} for at in changed if at.job.ended and at.job.webhook is not None]
        if owed:
            connection.execute(insert(WEBHOOKS_DUE), owed)
    if images:
        connection.execute(insert(IMAGES), images)
    return told


def _counts(at: _Known, one: News) -> bool:
    event = one.event.event
    if at.job.ended or one.event.number != at.last + 1:
        return False
    if isinstance(event, Started):
        return event.attempt > at.job.attempt
    return one.attempt == at.job.attempt


def _is_there(
    connection: Connection, seq: int, numbered: NumberedEvent, fresh: list[dict[str, Any]]
) -> bool:
    """Whether exactly this was stored before."""
    wanted = _stored(seq, numbered)
    if wanted in fresh:
        return True
    found = (
        connection.execute(
            select(EVENTS).where(EVENTS.c.job == seq, EVENTS.c.number == numbered.number)
        )
        .mappings()
        .one_or_none()
    )
    return found is not None and dict(found) == wanted


def _take(at: _Known, one: News) -> None:
    at.job.apply(one.event)
    at.last, at.changed = one.event.number, True
    if isinstance(one.event.event, Started):
        at.started = one.event.timestamp
        if at.waited is None:
            at.waited = max(0.0, at.started - at.job.created)
    if one.picture is not None and one.picture.state == "stored":
        at.bytes += one.picture.bytes


def _stored(seq: int, numbered: NumberedEvent) -> dict[str, Any]:
    event = numbered.event
    if isinstance(event, Progressed) and event.preview is not None:
        event = msgspec.structs.replace(event, preview=None)
    return {
        "job": seq,
        "number": numbered.number,
        "timestamp": numbered.timestamp,
        "event": _encode(event),
    }


def _changed(at: _Known) -> dict[str, Any]:
    job = at.job
    return {
        "of": at.seq,
        "new_status": job.status,
        "new_attempt": job.attempt,
        "new_last_event": at.last,
        "new_changed": job.changed,
        "new_waited": at.waited,
        "new_started": at.started,
        "new_ended": job.changed if job.ended else None,
        "new_bytes": at.bytes,
        "new_model": job.request.model,
        "new_size": job.request.size,
    }
