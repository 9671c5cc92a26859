"""`easel styles`."""

from __future__ import annotations

import json

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli._server import At, Key, Server, server_at
from app.cli._shell import AsJson, errors_told, shell, shown
from app.domain.style import Style
from app.settings import load_settings, load_styles


@shell.command()
def styles(server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """List the styles, and the words that they put around a prompt."""
    with errors_told(), server_at(server, key) as asked:
        known = _told_by(asked) if asked else dict(load_styles(load_settings().styles_file))
    if as_json:
        told = {name: style.model_dump(mode="json") for name, style in known.items()}
        print(json.dumps(told, indent=2))
        return
    table = Table("style", "also", "words", "negative", box=None)
    for name, style in known.items():
        texts = (name, ", ".join(style.aliases), style.around("..."), style.negative)
        table.add_row(*(Text(shown(text)) for text in texts))
    Console().print(table)


def _told_by(server: Server) -> dict[str, Style]:
    """Raises what `Server` raises."""
    try:
        return {
            str(one.pop("id")): Style.model_validate(one)
            for one in server.listed("/styles", "styles")
        }
    except (KeyError, ValidationError) as error:
        raise server.nonsense() from error
