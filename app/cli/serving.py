"""`easel serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli._shell import shell
from app.settings import load_settings


@shell.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any.")] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C."""
    from app.server import run

    given = {"host": host, "port": port}
    run(load_settings(**{name: value for name, value in given.items() if value is not None}))
