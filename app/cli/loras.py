"""`easel loras`: which LoRAs there are, and fetching them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import AsJson, errors_told, shell
from app.cli.models import watch
from app.domain.lora import lora_id
from app.settings import load_settings

if TYPE_CHECKING:
    from app.model_files.loras import LoraShelf
    from app.model_files.shelf import ModelShelf

loras = typer.Typer(help="List LoRAs, fetch them.", no_args_is_help=True)
shell.add_typer(loras, name="loras")


@loras.command("list")
def list_loras(as_json: AsJson = False) -> None:
    """List the LoRAs that a request may name."""
    _, known = _open()
    found = known.shown()
    if as_json:
        print(json.dumps([msgspec.structs.asdict(one) for one in found], indent=2))
        return
    table = Table("name", "for", "state", "size", "trigger words", box=None)
    for one in found:
        size = f"{one.bytes / 1e6:.1f} MB" if one.bytes else ""
        words = ", ".join(one.trigger_words)
        table.add_row(one.name, one.family, one.state.replace("_", " "), size, words)
    Console().print(table)
    for one in found:
        if one.reason:
            print(one.reason)


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


def _open() -> tuple[ModelShelf, LoraShelf]:
    from app.main import open_loras, open_shelf

    logging.basicConfig(level=logging.ERROR)
    settings = load_settings()
    shelf = open_shelf(settings, {})
    return shelf, open_loras(settings, shelf)
