"""Measured seconds by kind of work, the newest samples of each: what estimates are made of."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, tuple_

from app.store.database import Database
from app.store.schema import TIMINGS

_MAX = 5000
_samples = msgspec.msgpack.Decoder(list[float]).decode
_KEY = ("model", "width", "height", "steps", "device", "phase", "technique")


class Timing(msgspec.Struct, frozen=True):
    """The seconds that one phase of one kind of work took, oldest first."""

    model: str
    width: int
    height: int
    steps: int
    device: str
    phase: str
    technique: str
    samples: list[float]


class Timings:
    """The measured times of a database; of more than 5000 kinds of work, the newest are kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[Timing]:
        """All of them, the longest unchanged first."""

        def work(connection: Connection) -> list[Timing]:
            found = connection.execute(select(TIMINGS).order_by(TIMINGS.c.place))
            return [
                Timing(**{name: row[name] for name in _KEY}, samples=_samples(row["samples"]))
                for row in found.mappings()
            ]

        return await self._database.read(work)

    async def save(self, changed: Sequence[Timing]) -> None:
        """Put these in the place of what was known of the same kinds of work."""
        if not changed:
            return

        def work(connection: Connection) -> None:
            first = (connection.scalar(select(func.max(TIMINGS.c.place))) or 0) + 1
            rows = {
                msgspec.structs.astuple(one)[:7]: {
                    "place": place,
                    "samples": msgspec.msgpack.encode(one.samples),
                }
                for place, one in enumerate(changed, first)
            }
            key = tuple_(*(TIMINGS.c[name] for name in _KEY))
            connection.execute(delete(TIMINGS).where(key.in_(list(rows))))
            connection.execute(
                insert(TIMINGS),
                [dict(zip(_KEY, of, strict=True)) | value for of, value in rows.items()],
            )
            oldest = select(TIMINGS.c.place).order_by(TIMINGS.c.place.desc()).offset(_MAX).limit(1)
            if (last := connection.scalar(oldest)) is not None:
                connection.execute(delete(TIMINGS).where(TIMINGS.c.place <= last))

        await self._database.write(work)
