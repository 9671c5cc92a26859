"""`easel controls`."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli._server import At, Json, Key, Server, server_at
from app.cli._shell import AsJson, errors_told, shell, shown
from app.settings import load_cards, load_controls, load_settings


@shell.command()
def controls(server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """List the control networks, and the models that each steers; `easel models pull` fetches them."""
    with errors_told(), server_at(server, key) as asked:
        told = _told_by(asked) if asked else _told_here()
    if as_json:
        print(json.dumps(told, indent=2))
        return
    table = Table("id", "shows", "title", "models", box=None)
    for card in told:
        texts = (card["id"], card["shows"], card["title"], ", ".join(map(str, card["models"])))
        table.add_row(*(Text(shown(str(text))) for text in texts))
    Console().print(table)


def _told_here() -> list[Json]:
    settings = load_settings()
    models = load_cards(settings.models_dir).values()
    return [
        {
            **card.model_dump(mode="json"),
            "models": [model.id for model in models if card.steers(model)],
        }
        for card in load_controls(settings.controls_dir).values()
    ]


def _told_by(server: Server) -> list[Json]:
    """The same, of a server. Raises what `Server` raises."""
    told = server.listed("/controls", "controls")
    for card in told:
        known = {"id", "shows", "title", "models"} <= card.keys()
        if not known or not isinstance(card["models"], list):
            raise server.nonsense()
    return told
