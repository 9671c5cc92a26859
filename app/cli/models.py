"""`easel models`: which models there are, their files, and who holds them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

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
from rich.text import Text

from app.cli._complete import model_ids
from app.cli._server import At, Json, Key, Server, server_at, server_or_own
from app.cli._shell import AsJson, console, errors_told, shell, shown, stop
from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.model_files.state import ModelFiles
from app.settings import load_cards, load_controls, load_settings

if TYPE_CHECKING:
    from app.model_files.shelf import ModelShelf

models = typer.Typer()
shell.add_typer(models, name="models")

_LOOK_SECONDS = 0.2
_LOAD_SECONDS = 2000.0
"""Longer than a server waits for a model."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")

Name = Annotated[str, typer.Argument(help="Model id.", autocompletion=model_ids, metavar="ID")]


@models.callback(invoke_without_command=True)
def models_alone(
    context: typer.Context, server: At = "", key: Key = "", as_json: AsJson = False
) -> None:
    """List models and control networks, fetch their files, have workers hold them."""
    if context.invoked_subcommand is None:
        _list(server, key, as_json=as_json)


@models.command("list")
def list_models(server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """List the models and control networks that have a card, and where their files are."""
    _list(server, key, as_json=as_json)


def _list(address: str, key: str, *, as_json: bool) -> None:
    with errors_told(), server_at(address, key) as server:
        told = _told_by(server) if server else _told_here()
    if as_json:
        print(json.dumps(told, indent=2))
        return
    table = Table("id", "state", "size", "family", "title", box=None)
    for card in told:
        size = f"{card['bytes'] / 1e9:.1f} GB" if card["bytes"] else ""
        state = str(card["state"]).replace("_", " ")
        texts = (card["id"], state, size, card.get("family", ""), card.get("title", ""))
        table.add_row(*(Text(shown(str(text))) for text in texts))
    Console().print(table)
    for card in told:
        if card["reason"]:
            print(shown(str(card["reason"])))


def _told_here() -> list[Json]:
    cards, shelf = _shelf()
    states = {name: shelf.state(name) for name in cards}
    return [
        {
            **card.model_dump(mode="json"),
            "state": states[name].state,
            "bytes": states[name].bytes_total,
            "reason": states[name].reason,
        }
        for name, card in cards.items()
    ]


def _told_by(server: Server) -> list[Json]:
    """The same, of a server. Raises what `Server` raises."""
    cards, controls = server.listed("/models", "data"), server.listed("/controls", "controls")
    told = []
    for card in (*cards, *controls):
        if not {"id", "state", "reason"} <= card.keys():
            raise server.nonsense()
        size = card.get("bytes_total")
        told.append({**card, "bytes": size if isinstance(size, int) else 0})
    return told


@models.command()
def pull(name: Name, server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """Fetch the files of a model; what has come stays, should it be stopped."""
    with errors_told(), server_at(server, key) as asked:
        if asked is not None:
            path = _path(name)
            asked.ask("POST", f"{path}/pull")
            watch(lambda: _state(asked, asked.ask("GET", f"{path}/status")), as_json=as_json)
            return
        cards, shelf = _shelf()
        model = _known(cards, name)
        shelf.pull(model)
        try:
            watch(lambda: shelf.state(model), as_json=as_json)
        finally:
            shelf.close()


@models.command()
def rm(name: Name, server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """Remove the files that were fetched for a model."""
    with errors_told(), server_at(server, key) as asked:
        if asked is not None:
            freed = asked.ask("DELETE", f"{_path(name)}/files").get("freed")
            if not isinstance(freed, int):
                raise asked.nonsense()
        else:
            cards, shelf = _shelf()
            freed = shelf.remove(_known(cards, name))
    if as_json:
        print(json.dumps({"freed": freed}))
    else:
        print(f"{freed / 1e9:.1f} GB are free now")


@models.command()
def load(name: Name, server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """Have a worker of a server hold a model, so that its next picture need not wait for that."""
    with errors_told(), server_or_own(server, key) as asked:
        with console.status(f"loading {shown(name)}"):
            told = asked.ask("POST", f"{_path(name)}/load", timeout=_LOAD_SECONDS)
        _tell_held(asked, told, "is held by {}", "is held by nobody", as_json=as_json)


@models.command()
def unload(name: Name, server: At = "", key: Key = "", as_json: AsJson = False) -> None:
    """Have all workers of a server let go of a model; one in use goes when it is idle."""
    with errors_told(), server_or_own(server, key) as asked:
        told = asked.ask("POST", f"{_path(name)}/unload")
        _tell_held(asked, told, "leaves {} once it is idle", "is held by nobody", as_json=as_json)


def _tell_held(server: Server, told: Json, some: str, none: str, *, as_json: bool) -> None:
    workers = told.get("workers")
    if not isinstance(workers, list):
        raise server.nonsense()
    if as_json:
        print(json.dumps(told, indent=2))
        return
    text = some.format(", ".join(map(str, workers))) if workers else none
    print(shown(f"{told.get('id')} {text}"))


def watch(look: Callable[[], ModelFiles], *, as_json: bool = False) -> None:
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
    if as_json:
        print(json.dumps(msgspec.to_builtins(state), indent=2))
    if not state.here:
        stop(shown(state.reason) or "the download was stopped", 1)
    if as_json:
        return
    print(f"{state.state.replace('_', ' ')}, {state.bytes_total / 1e9:.1f} GB")


def _shelf() -> tuple[dict[str, ModelCard], ModelShelf]:
    from app.main import open_shelf

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
    if not _NAME.fullmatch(name):
        raise InvalidRequest("There is no such model.", param="model")
    return f"/models/{name}"


def _state(server: Server, told: Json) -> ModelFiles:
    try:
        return msgspec.convert({key: told[key] for key in told if key != "id"}, ModelFiles)
    except msgspec.ValidationError as error:
        raise server.nonsense() from error
