"""`easel serve` and `easel reload`."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from app.cli._shell import shell, stop
from app.pid_file import server_of
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


@shell.command()
def reload() -> None:
    """Have the running server read model cards, styles and upscalers anew; its log tells the result."""
    process = server_of(load_settings().data_dir)
    if process is None:
        stop("no server runs from this data folder", 1)
    os.kill(process, signal.SIGHUP)
