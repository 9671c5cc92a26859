"""Alembic's entry: brings the schema of the connection that `Database.open` gives up to date."""

from __future__ import annotations

from alembic import context

from app.store.schema import SCHEMA

_connection = context.config.attributes["connection"]
if _connection.dialect.name == "postgresql":  # two gateways may start at once
    _connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7301042)")
context.configure(connection=_connection, target_metadata=SCHEMA)
with context.begin_transaction():
    context.run_migrations()
