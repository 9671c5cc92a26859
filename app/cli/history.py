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

from app.cli._shell import console, errors_told, own_address, own_pass, shell, stop
from app.report import told
from app.settings import Settings, load_settings
from app.store.database import Database, StoreRefused
from app.store.statistics import Report, Statistics


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
    if report.statuses:
        print(told(report), end="")
    else:
        console.print("nothing was drawn yet")


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
