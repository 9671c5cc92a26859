"""What all commands share: the shell they belong to, and how errors are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from app.domain.errors import Cancelled, DeadlineExceeded, EaselError, InvalidRequest
from app.domain.job import Status

if TYPE_CHECKING:
    from app.settings import Settings

shell = typer.Typer(
    help="A self-hosted image API in front of Stable Diffusion and Flux.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ENDS: dict[Status, int] = {"succeeded": 0, "failed": 1, "cancelled": 3, "expired": 4}
"""What a command ends with that is about a job. 2 is for what was asked wrongly, as everywhere, and
130 for Ctrl-C."""


def stop(text: str, status: int) -> NoReturn:
    console.print(f"easel: {text}", style="red", highlight=False, markup=False)
    sys.exit(status)


@contextmanager
def errors_told() -> Iterator[None]:
    """End the process with a sentence and a status where an error would end it with a traceback.

    Sentences may be those of a server."""
    try:
        yield
    except InvalidRequest as error:
        stop(f"{error.param or 'request'}: {shown(error.message)}", 2)
    except Cancelled as error:
        stop(shown(error.message), ENDS["cancelled"])
    except DeadlineExceeded as error:
        stop(shown(error.message), ENDS["expired"])
    except EaselError as error:
        stop(shown(error.message), 1)
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}", 1)
    except KeyboardInterrupt:
        stop("stopped", 130)


def own_address(settings: Settings) -> str:
    """Where the server with these settings is reached from this machine."""
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def own_pass(settings: Settings) -> dict[str, str]:
    """What shows the server of the same data folder that who asks may read that folder."""
    from app.store.links import Links

    given = Links.open(settings.data_dir).local_pass()
    return {"authorization": f"Bearer {given}"}


def read_file(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        stop(f"{shown(str(path))}: {error.strerror}", 2)


def shown(text: str) -> str:
    """Text from outside: what could steer a terminal, or fake a line, shows as an escape."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


def cut(text: str, most: int) -> str:
    """The beginning of a text from outside, as `shown`."""
    text = shown(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
