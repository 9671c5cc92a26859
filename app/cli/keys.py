"""`easel keys`: who may come in."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from app.cli._shell import console, errors_told, own_address, own_pass, shell, stop
from app.domain.access import SCOPES, Allowance
from app.domain.errors import InvalidRequest
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.store.database import Database

keys = typer.Typer(help="Make keys, list them, revoke them.", no_args_is_help=True)
shell.add_typer(keys, name="keys")

Json = dict[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    owner: Annotated[
        str,
        typer.Option(help="Whose jobs come with it, if not its own: keys of one owner share them."),
    ] = "",
    scope: Annotated[
        list[str], typer.Option(help=f"What it may: {', '.join(SCOPES)}. May be given again.")
    ] = ["generate"],  # noqa: B006 - typer reads it and changes nothing
    requests_per_minute: Annotated[int, typer.Option(help="0 is without limit.", min=0)] = 0,
    running_jobs: Annotated[int, typer.Option(help="At the same time; others wait.", min=0)] = 0,
    queue_share: Annotated[
        float, typer.Option(help="Part of the places in the queue.", min=0.0, max=1.0)
    ] = 0.0,
    gpu_seconds_per_day: Annotated[
        float, typer.Option(help="Seconds that devices work for it.", min=0.0)
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: only a digest of it is kept."""
    body = {
        "name": name,
        "owner": owner or name,
        "scopes": scope,
        "requests_per_minute": requests_per_minute,
        "running_jobs": running_jobs,
        "queue_share": queue_share,
        "gpu_seconds_per_day": gpu_seconds_per_day,
    }
    if odd := set(scope) - set(SCOPES):
        stop(f"scope {min(odd)} is none of {', '.join(SCOPES)}", 2)
    made = _run("POST", "/keys", body)
    if as_json:
        print(json.dumps(made, indent=2))
        return
    print(made["key"])
    console.print(
        f"key {made['id']} of {made['owner']} may: {', '.join(made['scopes'])}. It is not shown again. "
        "From now on every request needs a key, also from this machine.",
        highlight=False,
        markup=False,
    )


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, revoked ones too."""
    known = _run("GET", "/keys")["keys"]
    if as_json:
        print(json.dumps(known, indent=2))
        return
    table = Table("id", "name", "owner", "scopes", "made", "limits", "GPU s today", "", box=None)
    for key in known:
        limits = [
            f"{key[name]:g} {text}"
            for name, text in (
                ("requests_per_minute", "a minute"),
                ("running_jobs", "at once"),
                ("queue_share", "of the queue"),
                ("gpu_seconds_per_day", "GPU s a day"),
            )
            if key[name]
        ]
        table.add_row(
            key["id"],
            key["name"],
            key["owner"],
            " ".join(key["scopes"]),
            time.strftime("%Y-%m-%d", time.gmtime(key["created"])),
            ", ".join(limits),
            f"{key['gpu_seconds_today']:.1f}",
            "revoked" if key["revoked"] else "",
        )
    Console().print(table)


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, as in the list.")],
    forget: Annotated[
        bool, typer.Option(help="Remove it from the list; after the last one, none is asked for.")
    ] = False,
) -> None:
    """Let nobody in with a key any more, from this moment on."""
    _run("DELETE", f"/keys/{key_id}", forget=forget)


def _run(method: str, path: str, body: Json | None = None, *, forget: bool = False) -> Json:
    logging.basicConfig(level=logging.ERROR)
    with errors_told():
        return asyncio.run(_done(load_settings(), method, path, body, forget))


async def _done(
    settings: Settings, method: str, path: str, body: Json | None, forget: bool
) -> Json:
    """By the database, or by the server that has it to itself. Raises EaselError."""
    from app.store.database import Database, StoreRefused

    try:
        async with await Database.open(settings.database_url()) as database:
            return await _in(database, method, path, body, forget)
    except StoreRefused as refused:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                answer = await client.request(
                    method,
                    f"{own_address(settings)}{path}",
                    json=body,
                    params={"forget": forget} if forget else None,
                    headers=own_pass(settings),
                )
            told: Json = answer.json()
        except (httpx.HTTPError, ValueError):
            stop(f"{refused}, and no server answers at {own_address(settings)}", 1)
        if answer.is_error:
            error = told["error"]
            raise InvalidRequest(error["message"], param=error["param"] or "key") from refused
        return told


async def _in(database: Database, method: str, path: str, body: Json | None, forget: bool) -> Json:
    from app.api.keys import KeyDesk, shown
    from app.store.keys import KeyRing
    from app.store.spending import Ledger

    ring, ledger = KeyRing(database), Ledger(database)
    await ledger.load()
    key_id = path.removeprefix("/keys").strip("/")
    if body is not None:
        given = dict(body)
        name, owner, scopes = given.pop("name"), given.pop("owner"), given.pop("scopes")
        key, text = await ring.create(
            name, owner=owner, scopes=tuple(scopes), allowance=Allowance(**given)
        )
        return {**shown(key, 0.0), "key": text}
    if method == "DELETE":
        await (ring.forget(key_id) if forget else ring.revoke(key_id))
    desk = KeyDesk(ring, ledger)
    return {"keys": [desk.shown(key) for key in await ring.list()]}
