"""Jobs, their events, input pictures, images and tags; measured times; search in prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_SEARCH = {
    "sqlite": (
        """CREATE VIRTUAL TABLE prompts USING fts5(
            words, content='details', content_rowid='job', tokenize='unicode61', detail='none',
            prefix='1 2 3 4 5'
        )""",
        """CREATE TRIGGER prompts_insert AFTER INSERT ON details BEGIN
            INSERT INTO prompts(rowid, words) VALUES (new.job, new.words);
        END""",
        """CREATE TRIGGER prompts_delete AFTER DELETE ON details BEGIN
            INSERT INTO prompts(prompts, rowid, words) VALUES ('delete', old.job, old.words);
        END""",
    ),
    "postgresql": (
        """ALTER TABLE details ADD COLUMN searched tsvector
            GENERATED ALWAYS AS (to_tsvector('simple', words)) STORED""",
        "CREATE INDEX details_searched ON details USING gin (searched)",
    ),
}


def _of_job() -> sa.Column[int]:
    owner = sa.ForeignKey("jobs.seq", ondelete="CASCADE")
    return sa.Column("job", _number, owner, primary_key=True)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _number, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("size", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("waited", sa.Double),
        sa.Column("started", sa.Double),
        sa.Column("ended", sa.Double),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_owner", "jobs", ["owner", "seq"])
    op.create_index("jobs_model", "jobs", ["model", "seq"])
    op.create_index("jobs_status", "jobs", ["status", "seq"])
    op.create_index("jobs_size", "jobs", ["size", "seq"])
    op.create_index("jobs_created", "jobs", ["created"])
    op.create_table(
        "details",
        _of_job(),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "inputs",
        _of_job(),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "events",
        _of_job(),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("timestamp", sa.Double, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", _number, sa.ForeignKey("jobs.seq", ondelete="CASCADE"), nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("favourite", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
    )
    op.create_index("images_job", "images", ["job"])
    op.create_index("images_digest", "images", ["digest"])
    liked = sa.text("favourite")
    op.create_index(
        "images_favourite", "images", ["job"], sqlite_where=liked, postgresql_where=liked
    )
    op.create_table("tags", _of_job(), sa.Column("tag", sa.Text, primary_key=True))
    op.create_index("tags_tag", "tags", ["tag", "job"])
    op.create_table(
        "timings",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("height", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("steps", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("phase", sa.Text, primary_key=True),
        sa.Column("technique", sa.Text, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("samples", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    for statement in _SEARCH[op.get_bind().dialect.name]:
        op.execute(statement)
