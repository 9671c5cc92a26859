"""Which weights exactly a model is made of: told the same on every machine that has the same files."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from functools import cache
from pathlib import Path

_log = logging.getLogger(__name__)


class ModelHash:
    """SHA-256 over every byte of the files, in a thread of its own, so that no load waits for it.

    A gigabyte takes one to two seconds of one core and is read beside the load, so once from the
    disk. What is known stays known in this process until a file's size or time changes.
    """

    def __init__(self, folder: Path) -> None:
        self._value = ""
        self._folder = folder
        self._thread = threading.Thread(target=self._compute, name="model hash", daemon=True)
        self._thread.start()

    def known(self, *, wait: float = 0.0) -> str:
        """The hash in 64 hex digits; empty as long as it is not known after that many seconds."""
        self._thread.join(wait)
        return self._value

    def _compute(self) -> None:
        try:
            self._value = hash_of(self._folder)
        except OSError as error:  # a folder that cannot be read is the load's to complain of
            _log.debug("no hash of the model: %s", error.strerror)


def commit_of(source: str) -> str:
    """The commit of a folder in the Hub's cache, which is the folder's name; "" of any other."""
    name = Path(source).name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else ""


def hash_of(folder: Path) -> str:
    """SHA-256 of the list that `sha256sum` prints of a model's files; "" if there are no weights. A
    model in a single file has that file's own.

    The list is of `model_index.json`, then the parts' configurations and weights, each by name:

        LC_ALL=C sha256sum model_index.json */*.json */*.safetensors | sha256sum
    """
    if folder.is_file():
        return _hash_of_file(folder)
    weights = _found(folder, "*/*.safetensors")
    files = [*_found(folder, "model_index.json"), *_found(folder, "*/*.json"), *weights]
    lines = [f"{_hash_of_file(path)}  {path.relative_to(folder)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if weights else ""


def _found(folder: Path, pattern: str) -> list[Path]:
    """In the order, and without the hidden ones, of a shell."""
    found = (path for path in folder.glob(pattern) if not path.parent.name.startswith("."))
    return sorted(found, key=str)


def _hash_of_file(path: Path) -> str:
    status = path.stat()
    return _hashed(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _hashed(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
