"""The log: one line for each thing that happened, as JSON where a program reads it and in colours where
a person does.

What you can rely on: whatever it is told, a line is a line, of printable ASCII; it never holds the text
of a foreign exception, which may quote a prompt or a path: only its kind, and where it was raised.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "console"]

_VARIABLE = "EASEL_LOG_FORMAT"
_FRAMES = 12
"""The innermost ones of an exception."""

_LONGEST = 2000
"""Characters of a text in the log."""


def set_up(wanted: Format, *, worker: str = "") -> None:
    """Write everything from INFO on to standard error; lines of a worker tell which. "auto" is for
    people where standard error is a terminal. Processes that are started from now on do the same."""
    chosen = ("console" if sys.stderr.isatty() else "json") if wanted == "auto" else wanted
    os.environ[_VARIABLE] = chosen

    def of_worker(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
        return {**line, "worker": worker} if worker else line

    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        of_worker,
        without_foreign_text,
    ]
    last: list[Processor]
    if chosen == "json":
        last = [printable, structlog.processors.JSONRenderer()]
    else:
        last = [printable, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[remove, *last])
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # When they meet torchao: about files that it has saved, which are never loaded, and its enums.
    logging.getLogger("diffusers.quantizers.torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # which tells addresses, queries and all
    logging.captureWarnings(True)


def of_gateway() -> Format:
    """What the process said that started this one."""
    said = os.environ.get(_VARIABLE)
    return "json" if said == "json" else "console"


def without_foreign_text(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """The kinds of an exception and of what caused it, and where it was raised."""
    given = line.pop("exc_info", None)
    line.pop("stack_info", None)
    if isinstance(given, tuple):
        given = given[1]
    if not isinstance(given, BaseException):
        return line
    kinds: list[str] = []
    error: BaseException | None = given
    while error is not None and len(kinds) < 8:
        kinds.append(f"{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or error.__context__
    frames = traceback.extract_tb(given.__traceback__)[-_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {**line, "exception": kinds, "raised_in": places}


def printable(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """What could fake a line, or steer a terminal, shows as an escape."""
    return {name: _plain(value) for name, value in line.items()}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | float | None):
        return value
    text = str(value)[:_LONGEST]
    return "".join(
        mark if mark.isascii() and mark.isprintable() else mark.encode("unicode_escape").decode()
        for mark in text
    )
