"""How the files of a model stand."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["bundled", "on_disk", "not_downloaded", "downloading", "unavailable"]


class FileState(msgspec.Struct, frozen=True):
    name: str
    bytes_done: int
    bytes_total: int


class ModelFiles(msgspec.Struct, frozen=True):
    """Bytes are 0 where they are not known. `bytes_per_second` is of the last seconds, and
    `seconds_left` what that makes of the rest; both only while `downloading`.

    `reason` says in a sentence why a model is `unavailable`; then it is not tried again for
    `retry_in` seconds, but for somebody who pulls it.
    """

    state: State
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    files: tuple[FileState, ...] = ()
    reason: str = ""
    retry_in: float | None = None

    @property
    def here(self) -> bool:
        """Whether a picture can be drawn without fetching anything."""
        return self.state in ("bundled", "on_disk")
