"""Why a download ends before its end."""

from __future__ import annotations


class Refused(Exception):
    """It cannot be fetched; `reason` is the end of a sentence for everybody to read.

    What is `temporary` may be different a second later.
    """

    def __init__(self, reason: str, *, temporary: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.temporary = temporary


class Stopped(Exception):
    """Nobody wants it any more."""
