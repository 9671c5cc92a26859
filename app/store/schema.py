"""The tables. What changes here needs a migration beside it; a test compares the two.

A job's row is what is filtered, sorted and counted, and small, so that many are looked through in no
time; `details` holds what is large: its latest state as a value (MessagePack, without input pictures)
and the words of its prompt. `seq` counts acceptances: newest first is by it. Everything that belongs to
a job goes with its row. The index for full-text search is made by the migration: on SQLite the table
`prompts` (FTS5), on PostgreSQL the column `details.searched` (a tsvector).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

SCHEMA = MetaData()

_Number = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts a primary key by itself only where it is called INTEGER."""


def _of_job() -> Column[int]:
    return Column("job", _Number, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True)


JOBS = Table(
    "jobs",
    SCHEMA,
    Column("seq", _Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("door", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("size", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("priority", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("last_event", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("day", Integer, nullable=False),  # of `created`, counted from 1970-01-01, UTC
    Column("waited", Double),  # from acceptance to the first start
    Column("started", Double),  # the latest attempt
    Column("ended", Double),
    Column("bytes", BigInteger, nullable=False),  # of all its pictures
    Index("jobs_owner", "owner", "seq"),
    Index("jobs_model", "model", "seq"),
    Index("jobs_status", "status", "seq"),
    Index("jobs_size", "size", "seq"),
    Index("jobs_created", "created"),
    sqlite_autoincrement=True,  # a number is never given twice, even after a deletion
)

DETAILS = Table(
    "details",
    SCHEMA,
    _of_job(),
    Column("words", Text, nullable=False),  # of the prompt, as `app.store.words` spells them
    Column("value", LargeBinary, nullable=False),  # an `app.domain.job.Job`
)

INPUTS = Table(
    "inputs",
    SCHEMA,
    _of_job(),
    Column("name", Text, primary_key=True),  # a picture field of GenerationRequest
    Column("data", LargeBinary, nullable=False),
)

EVENTS = Table(
    "events",
    SCHEMA,
    _of_job(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("timestamp", Double, nullable=False),
    Column("event", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

IMAGES = Table(
    "images",
    SCHEMA,
    Column("id", Text, primary_key=True),
    Column("job", _Number, ForeignKey("jobs.seq", ondelete="CASCADE"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256, which is also the file's name
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("favourite", Boolean, nullable=False),
    Column("state", Text, nullable=False),  # stored, not_stored, deleted
    Index("images_job", "job"),
    Index("images_digest", "digest"),
    Index(
        "images_favourite",
        "job",
        sqlite_where=text("favourite"),
        postgresql_where=text("favourite"),
    ),
)

TAGS = Table(
    "tags",
    SCHEMA,
    _of_job(),
    Column("tag", Text, primary_key=True),
    Index("tags_tag", "tag", "job"),
)

WEBHOOKS_DUE = Table("webhooks_due", SCHEMA, _of_job())
"""Jobs that have ended, and whose webhooks are not known to have heard."""

TIMINGS = Table(
    "timings",
    SCHEMA,
    Column("model", Text, primary_key=True),
    Column("width", Integer, primary_key=True, autoincrement=False),
    Column("height", Integer, primary_key=True, autoincrement=False),
    Column("steps", Integer, primary_key=True, autoincrement=False),
    Column("device", Text, primary_key=True),
    Column("phase", Text, primary_key=True),
    Column("technique", Text, primary_key=True),
    Column("place", Integer, nullable=False),  # the order in which they are forgotten
    Column("samples", LargeBinary, nullable=False),
)

META = Table(
    "meta",
    SCHEMA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

KEYS = Table(
    "keys",
    SCHEMA,
    Column("id", Text, primary_key=True),  # the part of a key that may be shown
    Column("digest", Text, nullable=False),  # SHA-256 of the whole key
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("scopes", Text, nullable=False),  # with spaces between
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Column("requests_per_minute", Integer, nullable=False),  # 0 is without limit, here and below
    Column("running_jobs", Integer, nullable=False),
    Column("queue_share", Double, nullable=False),
    Column("gpu_seconds_per_day", Double, nullable=False),
)

SPENDING = Table(
    "spending",
    SCHEMA,
    Column("account", Text, primary_key=True),  # what keys call their owner
    Column("day", Integer, primary_key=True, autoincrement=False),  # as in `jobs`
    Column("seconds", Double, nullable=False),  # of devices
)
