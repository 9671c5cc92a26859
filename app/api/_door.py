"""A front door that has a listener of its own, beside HTTP."""

from __future__ import annotations

from typing import Protocol


class CannotOpen(Exception):
    """The door's address or credentials cannot be used; the message says which and why."""


class Door(Protocol):
    """It opens once jobs can be taken, and closes once every job has ended or is left for the next life
    of the server: all who wait at it get their last answers then, within seconds."""

    async def open(self) -> None:
        """Raises CannotOpen."""

    async def close(self) -> None: ...
