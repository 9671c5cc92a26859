"""`easel styles`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import shell
from app.settings import load_settings, load_styles


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
