"""Which process serves from a data folder: told in a file that is locked for as long as it does."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "easel.pid"


class InUse(Exception):
    """Another process serves from the folder."""


@contextmanager
def serving_from(folder: Path) -> Iterator[None]:
    """Tell that this process serves from the folder. Raises InUse, OSError."""
    with (folder / _NAME).open("a+") as file:
        if not _lock(file.fileno(), fcntl.LOCK_EX):
            raise InUse(f"{folder} is in use by another server")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def server_of(folder: Path) -> int | None:
    """The process that serves from the folder; None if there is none."""
    try:
        with (folder / _NAME).open() as file:
            told = file.read(20)
            if _lock(file.fileno(), fcntl.LOCK_SH):
                return None  # it has ended, and the number may be somebody else's by now
            return int(told) if told.isdecimal() else None
    except FileNotFoundError:
        return None


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
