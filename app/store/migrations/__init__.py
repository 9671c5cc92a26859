"""Schema changes, run by Alembic at every start. A released one is never edited."""
