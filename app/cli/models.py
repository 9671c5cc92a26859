"""`easel models`: which models there are, and fetching and removing their files."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from app.cli._shell import console, errors_told, shell, shown, stop
from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.main import open_shelf
from app.model_files.shelf import ModelShelf
from app.model_files.state import ModelFiles
from app.settings import load_cards, load_controls, load_settings

models = typer.Typer(help="List models, fetch their files, remove them.")
shell.add_typer(models, name="models")

_LOOK_SECONDS = 0.2

Server = Annotated[
    str | None, typer.Option("--server", help="Ask this server, such as http://127.0.0.1:5199.")
]


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models and control networks that have a card, and where their files are."""
    if context.invoked_subcommand is not None:
        return
    cards, shelf = _shelf()
    states = {name: shelf.state(name) for name in cards}
    if as_json:
        told = [
            {
                **card.model_dump(mode="json"),
                "state": states[name].state,
                "bytes": states[name].bytes_total,
                "reason": states[name].reason,
            }
            for name, card in cards.items()
        ]
        print(json.dumps(told, indent=2))
        return
    table = Table("id", "state", "size", "family", "title", box=None)
    for name, card in cards.items():
        state = states[name]
        size = f"{state.bytes_total / 1e9:.1f} GB" if state.bytes_total else ""
        table.add_row(card.id, state.state.replace("_", " "), size, card.family, card.title)
    Console().print(table)
    for state in states.values():
        if state.reason:
            print(state.reason)


@models.command()
def pull(name: str, server: Server = None) -> None:
    """Fetch the files of a model; what has come stays, should it be stopped."""
    with errors_told():
        if server is not None:
            model = _path(name)
            _ask(server, "POST", f"{model}/pull")
            watch(lambda: _state(_ask(server, "GET", f"{model}/status")))
            return
        cards, shelf = _shelf()
        model = _known(cards, name)
        shelf.pull(model)
        try:
            watch(lambda: shelf.state(model))
        finally:
            shelf.close()


@models.command()
def rm(name: str, server: Server = None) -> None:
    """Remove the files that were fetched for a model."""
    with errors_told():
        if server is not None:
            freed = int(_ask(server, "DELETE", f"{_path(name)}/files")["freed"])
        else:
            cards, shelf = _shelf()
            freed = shelf.remove(_known(cards, name))
    print(f"{freed / 1e9:.1f} GB are free now")


def watch(look: Callable[[], ModelFiles]) -> None:
    """Show how a download goes, file by file, until its end; stop with 1 if that is no good one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        lines: dict[str, TaskID] = {}
        while (state := look()).state == "downloading":
            for file in state.files:
                if file.name not in lines:
                    lines[file.name] = bars.add_task(shown(file.name), total=file.bytes_total)
                done = file.bytes_done
                over = done == file.bytes_total
                bars.update(lines[file.name], completed=done, visible=bool(done) and not over)
            if state.bytes_total:
                whole = lines.setdefault("", bars.add_task("all", total=None, visible=False))
                bars.update(
                    whole, total=state.bytes_total, completed=state.bytes_done, visible=True
                )
            time.sleep(_LOOK_SECONDS)
    if not state.here:
        stop(state.reason or "the download was stopped", 1)
    print(f"{state.state.replace('_', ' ')}, {state.bytes_total / 1e9:.1f} GB")


def _shelf() -> tuple[dict[str, ModelCard], ModelShelf]:
    logging.basicConfig(level=logging.ERROR)
    settings = load_settings()
    controls = load_controls(settings.controls_dir)
    others = {name: card.files for name, card in controls.items()}
    cards = {**load_cards(settings.models_dir), **others}
    return cards, open_shelf(settings, cards)


def _known(cards: dict[str, ModelCard], name: str) -> str:
    for card in cards.values():
        if name in (card.id, *card.aliases):
            return card.id
    raise InvalidRequest(f"There is no such model. Models: {', '.join(cards)}.", param="model")


def _path(name: str) -> str:
    return f"/models/{name}"


def _state(told: dict[str, Any]) -> ModelFiles:
    return msgspec.convert({key: value for key, value in told.items() if key != "id"}, ModelFiles)


def _ask(server: str, method: str, path: str) -> dict[str, Any]:
    try:
        key = os.environ.get(
            "EASEL_API_KEY"
        )  # never as an option: those show in lists of processes
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=server, timeout=30, trust_env=False, headers=headers) as client:
            answer = client.request(method, path)
        told: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        stop(f"no server answers at {shown(server)}", 1)
    if answer.is_error:
        stop(shown(str(told.get("error", {}).get("message", "the server refused"))), 1)
    return told
