"""`easel stats`: what was drawn here, and how long it took."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Annotated

import httpx
import msgspec
import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import console, errors_told, own_address, own_pass, shell, stop
from app.settings import Settings, load_settings
from app.store.database import Database, StoreRefused
from app.store.statistics import Report, Spread, Statistics


@shell.command()
def stats(
    days: Annotated[float, typer.Option(help="Of the last so many days.", min=0.0)] = 30.0,
    owner: Annotated[str | None, typer.Option(help="Of one owner only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Tell how long pictures took, how jobs ended, and how long they waited.

    Asks the server that runs with these settings, and looks into the database where none does.
    """
    logging.basicConfig(level=logging.ERROR)
    with errors_told():
        report = asyncio.run(_report(load_settings(), days, owner))
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
        return
    _show(report)


async def _report(settings: Settings, days: float, owner: str | None) -> Report:
    since = time.time() - days * 86_400
    try:
        async with await Database.open(settings.database_url()) as database:
            return await Statistics(database).report(since=since, owner=owner)
    except StoreRefused as error:  # a server has it
        question: dict[str, str | float] = {"days": days}
        question |= {"owner": owner} if owner else {}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                answer = await client.get(
                    f"{own_address(settings)}/stats", params=question, headers=own_pass(settings)
                )
                answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=Report)
        except (httpx.HTTPError, msgspec.MsgspecError):
            stop(f"{error}, and no server answers at {settings.host}:{settings.port}", 1)


def _show(report: Report) -> None:
    if not report.statuses:
        console.print("nothing was drawn yet")
        return
    table = Table("model", "size", "n", "min", "mean", "p50", "p95", "max", box=None)
    for kind in report.generation:
        table.add_row(kind.model, kind.size, *_seconds(kind.seconds))
    if report.waits is not None:
        table.add_row("(wait in the queue)", "", *_seconds(report.waits))
    Console().print(table)
    ends = ", ".join(f"{count} {status}" for status, count in sorted(report.statuses.items()))
    rate = "" if report.success_rate is None else f"; {report.success_rate:.1%} succeeded"
    print(f"\n{ends}{rate}\n")
    table = Table("day", "owner", "jobs", "succeeded", "failed", "cancelled", "expired", box=None)
    for day in report.days:
        counts = (day.jobs, day.succeeded, day.failed, day.cancelled, day.expired)
        table.add_row(day.day, day.owner, *map(str, counts))
    Console().print(table)


def _seconds(spread: Spread) -> tuple[str, ...]:
    figures = (spread.min, spread.mean, spread.p50, spread.p95, spread.max)
    return (str(spread.n), *(f"{figure:.2f} s" for figure in figures))
