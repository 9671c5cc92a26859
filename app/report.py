"""How long pictures took, for people: the same in a shell and in a browser."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from app.store.statistics import Report, Spread

_COLUMNS = 160


def told(report: Report) -> str:
    """Tables of plain text."""
    text = io.StringIO()
    page = Console(file=text, width=_COLUMNS, color_system=None, markup=False, highlight=False)
    table = Table("model", "size", "n", "min", "mean", "p50", "p95", "max", box=None)
    for kind in report.generation:
        table.add_row(kind.model, kind.size, *_seconds(kind.seconds))
    if report.waits is not None:
        table.add_row("(wait in the queue)", "", *_seconds(report.waits))
    page.print(table)
    ends = ", ".join(f"{count} {status}" for status, count in sorted(report.statuses.items()))
    rate = "" if report.success_rate is None else f"; {report.success_rate:.1%} succeeded"
    page.print(f"\n{ends or 'nothing was drawn yet'}{rate}\n")
    table = Table("day", "owner", "jobs", "succeeded", "failed", "cancelled", "expired", box=None)
    for day in report.days:
        counts = (day.jobs, day.succeeded, day.failed, day.cancelled, day.expired)
        table.add_row(day.day, day.owner, *map(str, counts))
    page.print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _seconds(spread: Spread) -> tuple[str, ...]:
    figures = (spread.min, spread.mean, spread.p50, spread.p95, spread.max)
    return (str(spread.n), *(f"{figure:.2f} s" for figure in figures))
