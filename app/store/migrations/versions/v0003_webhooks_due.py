"""Which jobs' ends are still to be told to their webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    of_job = sa.ForeignKey("jobs.seq", ondelete="CASCADE")
    op.create_table("webhooks_due", sa.Column("job", number, of_job, primary_key=True))
