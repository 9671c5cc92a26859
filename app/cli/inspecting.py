"""`easel inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app.cli._shell import read_file, shell, shown, stop
from app.domain.errors import InvalidRequest


@shell.command()
def inspect(
    picture: Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Tell how a picture was drawn, by Easel or another program, as far as its file says."""
    data = read_file(picture) or b""
    from app.engines.picture_text import read

    name = shown(str(picture))
    try:
        told = read(data)
    except InvalidRequest:
        stop(f"{name} is no PNG, JPEG or WebP that can be read", 1)
    if not told.facts:
        stop(f"{name} does not tell how it was drawn", 1)
    if as_json:  # which escapes all but visible ASCII
        print(json.dumps({"file": str(picture), **msgspec.to_builtins(told)}, indent=2))
        return
    print(f"{name}  {told.format} {told.width}x{told.height}")
    for key, value in told.facts.items():
        print(f"{shown(key):<20}  {shown(value)}")
