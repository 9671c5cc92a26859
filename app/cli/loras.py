"""`easel loras`: which LoRAs there are, and fetching them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli._server import At, Key, Server, server_at
from app.cli._shell import AsJson, errors_told, shell, shown
from app.cli.models import watch
from app.domain.lora import lora_id
from app.settings import load_settings

if TYPE_CHECKING:
    from app.model_files.loras import LoraShelf, LoraShown
    from app.model_files.shelf import ModelShelf

loras = typer.Typer(help="List LoRAs, fetch them.", no_args_is_help=True)
shell.add_typer(loras, name="loras")


@loras.command("list")
def list_loras(server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """List the LoRAs that a request may name."""
    with errors_told(), server_at(server, key) as asked:
        found = _told_by(asked) if asked else _open()[1].shown()
    if as_json:
        print(json.dumps([msgspec.structs.asdict(one) for one in found], indent=2))
        return
    table = Table("name", "for", "state", "size", "trigger words", box=None)
    for one in found:
        size = f"{one.bytes / 1e6:.1f} MB" if one.bytes else ""
        state, words = one.state.replace("_", " "), ", ".join(one.trigger_words)
        texts = (one.name, one.family, state, size, words)
        table.add_row(*(Text(shown(text)) for text in texts))
    Console().print(table)
    for one in found:
        if one.reason:
            print(shown(one.reason))


@loras.command()
def pull(name: str, as_json: AsJson = False) -> None:
    """Fetch a LoRA that the settings name; what has come stays, should it be stopped."""
    with errors_told():
        shelf, known = _open()
        known.pull(name)
        try:
            watch(lambda: shelf.state(lora_id(name)), as_json=as_json)
        finally:
            shelf.close()


def _told_by(server: Server) -> Sequence[LoraShown]:
    """Raises what `Server` raises."""
    from app.model_files.loras import LoraShown

    try:
        return msgspec.convert(server.listed("/loras", "loras"), list[LoraShown])
    except msgspec.ValidationError as error:
        raise server.nonsense() from error


def _open() -> tuple[ModelShelf, LoraShelf]:
    from app.main import open_loras, open_shelf

    logging.basicConfig(level=logging.ERROR)
    settings = load_settings()
    shelf = open_shelf(settings, {})
    return shelf, open_loras(settings, shelf)
