"""`easel serve` and `easel styles`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import shell
from app.settings import load_settings, load_styles


@shell.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any.")] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C."""
    from app.server import run

    given = {"host": host, "port": port}
    run(load_settings(**{name: value for name, value in given.items() if value is not None}))


@shell.command()
def styles(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the styles, and the words that they put around a prompt."""
    known = load_styles(load_settings().styles_file)
    if as_json:
        told = {name: style.model_dump(mode="json") for name, style in known.items()}
        print(json.dumps(told, indent=2))
        return
    table = Table("style", "also", "words", "negative", box=None)
    for name, style in known.items():
        table.add_row(name, ", ".join(style.aliases), style.around("..."), style.negative)
    Console().print(table)
