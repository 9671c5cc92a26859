"""How long pictures took, how jobs ended, how long they waited: counted from the stored jobs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Subquery, case, func, select

from app.store.database import Database
from app.store.schema import JOBS


class Spread(msgspec.Struct, frozen=True):
    """Of `n` numbers of seconds; a percentile is one of them."""

    n: int
    min: float
    mean: float
    p50: float
    p95: float
    max: float


class Generation(msgspec.Struct, frozen=True):
    """Seconds from the start of the last attempt to the end, of jobs that succeeded."""

    model: str
    size: str
    seconds: Spread


class Day(msgspec.Struct, frozen=True):
    """Jobs that an owner submitted on a day (UTC, `2026-01-31`), by how they ended."""

    day: str
    owner: str
    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int


class Report(msgspec.Struct, frozen=True):
    """`success_rate` is of the jobs that succeeded, failed or expired; `waits` are seconds queued."""

    generation: list[Generation]
    statuses: dict[str, int]
    success_rate: float | None
    waits: Spread | None
    days: list[Day]


class Statistics:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, *, since: float = 0.0, owner: str | None = None) -> Report:
        """Of all jobs accepted since then, or those of one owner. Raises StoreUnavailable."""
        among = [JOBS.c.created >= since]
        if owner is not None:
            among.append(JOBS.c.owner == owner)
        return await self._database.read(lambda connection: _report(connection, among))


def _report(connection: Connection, among: list[ColumnElement[bool]]) -> Report:
    count = func.count()
    ends = select(JOBS.c.status, count).where(*among).group_by(JOBS.c.status)
    statuses: dict[str, int] = {row[0]: row[1] for row in connection.execute(ends)}
    good = statuses.get("succeeded", 0)
    judged = good + statuses.get("failed", 0) + statuses.get("expired", 0)
    drawn = _ranked(
        JOBS.c.ended - JOBS.c.started,
        [JOBS.c.model, JOBS.c.size],
        [*among, JOBS.c.status == "succeeded", JOBS.c.started.is_not(None)],
    )
    waited = _ranked(JOBS.c.waited, [], [*among, JOBS.c.waited.is_not(None)])
    waits = [_spread(row) for row in connection.execute(select(*_figures(waited)))]
    return Report(
        generation=[
            Generation(row.model, row.size, _spread(row))
            for row in connection.execute(
                select(drawn.c.model, drawn.c.size, *_figures(drawn))
                .group_by(drawn.c.model, drawn.c.size)
                .order_by(drawn.c.model, drawn.c.size)
            )
        ],
        statuses=statuses,
        success_rate=good / judged if judged else None,
        waits=waits[0] if waits[0].n else None,
        days=_days(connection, among),
    )


def _ranked(
    seconds: ColumnElement[Any], groups: list[Any], where: list[ColumnElement[bool]]
) -> Subquery:
    """Each number with its place among those of its group."""
    of: dict[str, Any] = {"partition_by": groups or None}
    return (
        select(
            *groups,
            seconds.label("seconds"),
            func.row_number().over(**of, order_by=seconds).label("place"),
            func.count().over(**of).label("n"),
        )
        .where(*where)
        .subquery()
    )


def _figures(ranked: Subquery) -> list[ColumnElement[Any]]:
    seconds, place, n = ranked.c.seconds, ranked.c.place, ranked.c.n

    def percentile(share: int) -> ColumnElement[Any]:
        return func.min(case((place * 100 >= n * share, seconds)))

    return [
        func.count().label("n"),
        func.min(seconds).label("least"),
        func.avg(seconds).label("mean"),
        percentile(50).label("p50"),
        percentile(95).label("p95"),
        func.max(seconds).label("most"),
    ]


def _spread(row: Any) -> Spread:
    figures = (row.least, row.mean, row.p50, row.p95, row.most)
    return Spread(row.n, *(float(figure or 0.0) for figure in figures))


def _days(connection: Connection, among: list[ColumnElement[bool]]) -> list[Day]:
    def ended(status: str) -> ColumnElement[int]:
        return func.sum(case((JOBS.c.status == status, 1), else_=0))

    ends = [ended(status) for status in ("succeeded", "failed", "cancelled", "expired")]
    found = connection.execute(
        select(JOBS.c.day, JOBS.c.owner, func.count(), *ends)
        .where(*among)
        .group_by(JOBS.c.day, JOBS.c.owner)
        .order_by(JOBS.c.day.desc(), JOBS.c.owner)
    )
    epoch = dt.date(1970, 1, 1)
    return [
        Day((epoch + dt.timedelta(days=day)).isoformat(), owner, *map(int, counts))
        for day, owner, *counts in found
    ]
