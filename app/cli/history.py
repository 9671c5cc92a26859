"""`easel stats`: what was drawn here, and how long it took."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from app.cli._server import At, Key, NoEasel, Server, server_at
from app.cli._shell import AsJson, console, errors_told, shell, shown, stop
from app.domain.errors import Unavailable
from app.settings import load_settings

if TYPE_CHECKING:
    from app.store.statistics import Report


@shell.command()
def stats(
    days: Annotated[float, typer.Option(help="Of the last so many days.", min=0.0)] = 30.0,
    owner: Annotated[str | None, typer.Option(help="Of one owner only.")] = None,
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Tell how long pictures took, how jobs ended, and how long they waited.

    Asks the server that runs with these settings, and looks into the database where none does;
    or else the server that is named.
    """
    logging.basicConfig(level=logging.ERROR)
    with errors_told(), server_at(server, key) as asked:
        report = _asked(asked, days, owner) if asked else asyncio.run(_report(days, owner))
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
        return
    if report.statuses:
        from app.report import told

        print("\n".join(map(shown, told(report).splitlines())))
    else:
        console.print("nothing was drawn yet")


async def _report(days: float, owner: str | None) -> Report:
    from app.store.database import Database, StoreRefused
    from app.store.statistics import Statistics

    settings = load_settings()
    since = time.time() - days * 86_400
    try:
        async with await Database.open(settings.database_url()) as database:
            return await Statistics(database).report(since=since, owner=owner)
    except StoreRefused as refused:  # a server has it
        try:
            with Server.own(settings) as own:
                return _asked(own, days, owner)
        except (NoEasel, Unavailable):
            place = f"{settings.host}:{settings.port}"
            stop(f"{refused}, and no server answers at {place}", 1)


def _asked(server: Server, days: float, owner: str | None) -> Report:
    from app.store.statistics import Report

    question: dict[str, str | float] = {"days": days}
    question |= {"owner": owner} if owner else {}
    try:
        return msgspec.convert(server.ask("GET", "/stats", params=question), Report)
    except msgspec.ValidationError as error:
        raise server.nonsense() from error
