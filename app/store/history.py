"""What was drawn: looked through, marked, and in the end forgotten.

What you can rely on: pages neither skip nor repeat a job while new ones come in; what is deleted is
gone from lists, search and the disk (files that cannot be removed at once, by the next sweep of the
pictures); no limit removes a job that has not ended or of which a picture is a favourite.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    column,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    table,
    update,
)

from app.domain.errors import InvalidRequest, NotFound
from app.domain.job import Job, Status
from app.store.database import Database
from app.store.jobs import Picture
from app.store.pictures import PictureStore, names_of
from app.store.schema import DETAILS, IMAGES, JOBS, TAGS
from app.store.words import words_of

_ENDED = JOBS.c.ended.is_not(None)
_CHUNK = 200
"""So many jobs are deleted in one transaction, so that others get their turn."""

_MAX_TAG = 64
_PROMPTS = table("prompts", column("rowid"))
_job_of = msgspec.msgpack.Decoder(Job).decode


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs: those for which all that is given holds. Times are Unix seconds of acceptance.

    `words` are beginnings of words of the prompt, in any case and order.
    """

    words: str = ""
    model: str | None = None
    status: Status | None = None
    owner: str | None = None
    door: str | None = None
    size: str | None = None
    since: float | None = None
    until: float | None = None
    favourite: bool = False
    tag: str | None = None


class Past(msgspec.Struct, frozen=True):
    """A job as it is stored, its tags, and what its pictures are like, by index."""

    job: Job
    tags: list[str]
    pictures: list[Picture]


class Page(msgspec.Struct, frozen=True):
    """Jobs, newest first; `cursor` asks for those after them, and is None at the end."""

    jobs: list[Past]
    cursor: str | None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept; None is without limit. Bytes are those of pictures, given and drawn."""

    seconds: float | None = None
    jobs: int | None = None
    bytes: int | None = None
    jobs_of_owner: int | None = None
    bytes_of_owner: int | None = None


class History:
    """The jobs of a database and their pictures. Raises StoreUnavailable, StorageFull."""

    def __init__(self, database: Database, pictures: PictureStore) -> None:
        self._database = database
        self._pictures = pictures

    async def list(
        self, wanted: Wanted | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """Jobs that are `wanted`, newest first. Raises InvalidRequest for a cursor that is none."""
        which = wanted or Wanted()
        before = _before(cursor)
        return await self._database.read(lambda connection: _page(connection, which, limit, before))

    async def get(self, job_id: str) -> Past:
        """One of them. Raises NotFound."""

        def work(connection: Connection) -> Past:
            return _pasts(connection, [_seq(connection, job_id)])[0]

        return await self._database.read(work)

    async def owner_of_image(self, image_id: str) -> str | None:
        """Whose job a picture is of; None where there is no such picture."""
        if not (image_id.isascii() and image_id.isalnum()):
            return None
        of = select(JOBS.c.owner).join(IMAGES).where(IMAGES.c.id == image_id)
        owner: str | None = await self._database.read(lambda connection: connection.scalar(of))
        return owner

    async def favourite(self, image_id: str, on: bool = True) -> None:
        """Mark a picture, so that no limit removes it. Raises NotFound."""

        def work(connection: Connection) -> None:
            mark = update(IMAGES).where(IMAGES.c.id == image_id).values(favourite=on)
            if not connection.execute(mark).rowcount:
                raise NotFound("There is no such picture.", param="id")

        await self._database.write(work)

    async def tag(self, job_id: str, tag: str, on: bool = True) -> None:
        """Put a tag on a job, or take it off. Raises NotFound, InvalidRequest."""
        if not tag.strip() or len(tag) > _MAX_TAG or not tag.isprintable():
            raise InvalidRequest(f"A tag is 1 to {_MAX_TAG} printable characters.", param="tag")

        def work(connection: Connection) -> None:
            row = {"job": _seq(connection, job_id), "tag": tag.strip()}
            same = and_(TAGS.c.job == row["job"], TAGS.c.tag == row["tag"])
            connection.execute(delete(TAGS).where(same))
            if on:
                connection.execute(insert(TAGS).values(row))

        await self._database.write(work)

    async def delete(self, job_id: str) -> None:
        """Remove an ended job with everything that belongs to it. Raises NotFound, InvalidRequest."""

        def work(connection: Connection) -> dict[str, str]:
            seq = _seq(connection, job_id)
            if connection.scalar(select(JOBS.c.ended).where(JOBS.c.seq == seq)) is None:
                raise InvalidRequest("The job has not ended; cancel it first.", param="id")
            return _delete(connection, [seq])

        await self._pictures.discard(await self._database.write(work))

    async def delete_owner(self, owner: str) -> int:
        """Remove every job of an owner, ended or not; tell how many. No trace stays in the index.

        Events of one that was still running do not count from then on.
        """
        removed = await self._delete_all(select(JOBS.c.seq).where(JOBS.c.owner == owner))
        if removed:
            await self._database.write(_tidy_index)
        return removed

    async def retain(self, limits: Limits, now: float) -> int:
        """Remove what exceeds the limits, oldest first; tell how many jobs."""
        removed = 0
        for expired in _beyond(limits, now):
            removed += await self._delete_all(expired)
        return removed

    async def _delete_all(self, jobs: Select[Any]) -> int:
        found = await self._database.read(lambda connection: connection.scalars(jobs).all())
        removed = 0
        for first in range(0, len(found), _CHUNK):
            some = found[first : first + _CHUNK]
            names = await self._database.write(partial(_delete, seqs=some))
            await self._pictures.discard(names)
            removed += len(some)
        return removed


def _delete(connection: Connection, seqs: Sequence[int]) -> dict[str, str]:
    """Remove jobs; give the files that their pictures are in."""
    names = names_of(connection, seqs)
    connection.execute(delete(JOBS).where(JOBS.c.seq.in_(seqs)))  # the rest goes with them
    return names


def _tidy_index(connection: Connection) -> None:
    """Deleted words stay in parts of the index until it is written anew."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("INSERT INTO prompts(prompts) VALUES ('optimize')")


def _seq(connection: Connection, job_id: str) -> int:
    seq: int | None = connection.scalar(select(JOBS.c.seq).where(JOBS.c.id == job_id))
    if seq is None:
        raise NotFound("There is no such job.", param="id")
    return seq


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise InvalidRequest("This cursor is not one that a list has given.", param="cursor")
    return int(cursor)


def _page(connection: Connection, wanted: Wanted, limit: int, before: int | None) -> Page:
    words = words_of(wanted.words)
    if wanted.words.strip() and not words:
        return Page([], None)  # nothing but punctuation: no prompt has such words
    statement = select(JOBS.c.seq).where(*_conditions(wanted))
    order: ColumnElement[int] = JOBS.c.seq
    if words and connection.dialect.name == "sqlite":
        # From the index's own order, so that a common word costs no more than a rare one.
        order = _PROMPTS.c.rowid
        beginnings = " ".join(f'"{word}"*' for word in words)
        statement = statement.join(_PROMPTS, _PROMPTS.c.rowid == JOBS.c.seq).where(
            literal_column("prompts").op("MATCH")(beginnings)
        )
    elif words:
        beginnings = " & ".join(f"'{word}':*" for word in words)
        statement = statement.join(DETAILS).where(
            literal_column("details.searched").op("@@")(func.to_tsquery("simple", beginnings))
        )
    if before is not None:
        statement = statement.where(order < before)
    seqs = connection.scalars(statement.order_by(order.desc()).limit(limit + 1)).all()
    more = len(seqs) > limit
    seqs = seqs[:limit]
    return Page(_pasts(connection, seqs), str(seqs[-1]) if more and seqs else None)


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        JOBS.c[name] == value.replace("\0", "\ufffd")  # which PostgreSQL has no text with
        for name in ("model", "status", "owner", "door", "size")
        if (value := getattr(wanted, name)) is not None
    ]
    if wanted.since is not None:
        found.append(JOBS.c.created >= wanted.since)
    if wanted.until is not None:
        found.append(JOBS.c.created < wanted.until)
    if wanted.favourite:
        found.append(_has_favourite())
    if wanted.tag is not None:
        tag = wanted.tag.strip().replace("\0", "\ufffd")
        found.append(JOBS.c.seq.in_(select(TAGS.c.job).where(TAGS.c.tag == tag)))
    return found


def _has_favourite() -> ColumnElement[bool]:
    return JOBS.c.seq.in_(select(IMAGES.c.job).where(IMAGES.c.favourite))


def _pasts(connection: Connection, seqs: Sequence[int]) -> list[Past]:
    """The jobs in this order, with their tags and those pictures that the last attempt drew."""
    tags: dict[int, list[str]] = {seq: [] for seq in seqs}
    for job, tag in connection.execute(
        select(TAGS.c.job, TAGS.c.tag).where(TAGS.c.job.in_(seqs)).order_by(TAGS.c.tag)
    ):
        tags[job].append(tag)
    pictures: dict[int, dict[str, Picture]] = {seq: {} for seq in seqs}
    for row in connection.execute(select(IMAGES).where(IMAGES.c.job.in_(seqs))).mappings():
        facts = dict(row)
        of = facts.pop("job")
        pictures[of][row["id"]] = Picture(**facts)
    values = select(DETAILS.c.job, DETAILS.c.value).where(DETAILS.c.job.in_(seqs))
    jobs: dict[int, Job] = {row.job: _job_of(row.value) for row in connection.execute(values)}
    return [
        Past(
            jobs[seq],
            tags[seq],
            [
                pictures[seq][image.image_id]
                for _, image in sorted(jobs[seq].images.items())
                if image.image_id in pictures[seq]
            ],
        )
        for seq in seqs
    ]


def _beyond(limits: Limits, now: float) -> list[Select[Any]]:
    """The jobs that each limit removes. Those that stay count as well, the newest first."""
    found: list[Select[Any]] = []
    may_go = and_(_ENDED, ~_has_favourite())
    if limits.seconds is not None:
        old = JOBS.c.ended < now - limits.seconds
        found.append(select(JOBS.c.seq).where(may_go, old).order_by(JOBS.c.seq))
    for partition, most_jobs, most_bytes in (
        (None, limits.jobs, limits.bytes),
        (JOBS.c.owner, limits.jobs_of_owner, limits.bytes_of_owner),
    ):
        if most_jobs is None and most_bytes is None:
            continue
        window: dict[str, Any] = {"partition_by": partition, "order_by": JOBS.c.seq.desc()}
        ranked = select(
            JOBS.c.seq,
            may_go.label("may_go"),
            func.row_number().over(**window).label("place"),
            func.sum(JOBS.c.bytes).over(**window, rows=(None, 0)).label("bytes"),
        ).subquery()
        over = []
        if most_jobs is not None:
            over.append(ranked.c.place > most_jobs)
        if most_bytes is not None:
            over.append(ranked.c.bytes > most_bytes)
        found.append(select(ranked.c.seq).where(ranked.c.may_go, or_(*over)).order_by(ranked.c.seq))
    return found
