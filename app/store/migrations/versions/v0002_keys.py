"""API keys, and what was spent of the devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("revoked", sa.Double),
        sa.Column("requests_per_minute", sa.Integer, nullable=False),
        sa.Column("running_jobs", sa.Integer, nullable=False),
        sa.Column("queue_share", sa.Double, nullable=False),
        sa.Column("gpu_seconds_per_day", sa.Double, nullable=False),
    )
    op.create_table(
        "spending",
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
