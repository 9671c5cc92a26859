"""`easel controls`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import shell
from app.settings import load_cards, load_controls, load_settings


@shell.command()
def controls(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the control networks, and the models that each steers; `easel models pull` fetches them."""
    settings = load_settings()
    known = load_controls(settings.controls_dir).values()
    models = load_cards(settings.models_dir).values()
    steered = {card.id: [model.id for model in models if card.steers(model)] for card in known}
    if as_json:
        told = [{**card.model_dump(mode="json"), "models": steered[card.id]} for card in known]
        print(json.dumps(told, indent=2))
        return
    table = Table("id", "shows", "title", "models", box=None)
    for card in known:
        table.add_row(card.id, card.shows, card.title, ", ".join(steered[card.id]))
    Console().print(table)
