"""`easel nginx`."""

from __future__ import annotations

import typer

from app.cli._shell import shell
from app.settings import load_settings


@shell.command("nginx")
def nginx() -> None:
    """Print easel/routes.conf for nginx: which routes stream, and how large bodies may be."""
    from app.api._proxy import nginx_routes
    from app.main import build, create_app

    settings = load_settings()
    typer.echo(nginx_routes(create_app(settings, build(settings))), nl=False)
