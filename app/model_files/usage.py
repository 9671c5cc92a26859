"""When each model was last used, kept over restarts: what was not used for longest goes first."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

import msgspec

_log = logging.getLogger(__name__)

_STORE_SECONDS = 60.0
"""How much of the latest use may be forgotten in a crash."""


class Usage:
    """`file` holds Unix seconds by model id; one that cannot be read counts as empty."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: dict[str, float] = {}
        with suppress(OSError, msgspec.DecodeError):
            self._last = msgspec.json.decode(file.read_bytes(), type=dict[str, float])

    def note(self, model: str) -> None:
        now = time.time()
        before = self._last.get(model, 0.0)
        self._last[model] = now
        if now - before >= _STORE_SECONDS:
            self._store()

    def last(self, model: str) -> float:
        """0 for one that was never used."""
        return self._last.get(model, 0.0)

    def forget(self, model: str) -> None:
        if self._last.pop(model, None) is not None:
            self._store()

    def _store(self) -> None:
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(self._last))
            draft.replace(self._file)
        except OSError as error:
            _log.warning("when models were used cannot be stored: %s", error.strerror)
