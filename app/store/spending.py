"""Seconds that devices worked for each owner of keys, by day: counted in memory, kept now and then.

What you can rely on: what was saved outlives the process; a crash forgets what was counted since.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.access import account_of
from app.store.database import Database
from app.store.schema import SPENDING

_DAY = 86_400
_JOBS = 1000
"""Jobs of which the seconds are known one by one."""


class Ledger:
    """Raises StoreUnavailable. `clock` gives Unix seconds; days are those of UTC."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._spent: dict[tuple[str, int], float] = {}
        self._unsaved: set[tuple[str, int]] = set()
        self._of_jobs: OrderedDict[str, float] = OrderedDict()

    def add(self, owner: str, job_id: str, seconds: float) -> None:
        """A device has worked for a job."""
        if not seconds:
            return
        entry = account_of(owner), self._today()
        self._spent[entry] = self._spent.get(entry, 0.0) + seconds
        self._unsaved.add(entry)
        self._of_jobs[job_id] = self._of_jobs.get(job_id, 0.0) + seconds
        while len(self._of_jobs) > _JOBS:
            self._of_jobs.popitem(last=False)

    def today(self, account: str) -> float:
        return self._spent.get((account, self._today()), 0.0)

    def of_job(self, job_id: str) -> float | None:
        """Seconds that were spent on a job that ended not long ago."""
        return self._of_jobs.get(job_id)

    async def load(self) -> None:
        """Know what was spent today by earlier processes."""
        today = self._today()

        def work(connection: Connection) -> dict[tuple[str, int], float]:
            found = connection.execute(select(SPENDING).where(SPENDING.c.day == today))
            return {(row.account, row.day): row.seconds for row in found}

        for entry, seconds in (await self._database.read(work)).items():
            self._spent[entry] = self._spent.get(entry, 0.0) + seconds

    async def save(self) -> None:
        entries, self._unsaved = self._unsaved, set()
        if not entries:
            return
        rows = [
            {"account": account, "day": day, "seconds": self._spent[account, day]}
            for account, day in entries
        ]
        try:
            await self._database.write(lambda connection: _save(connection, rows))
        except BaseException:
            self._unsaved |= entries
            raise
        today = self._today()
        for entry in [one for one in self._spent if one[1] < today and one not in self._unsaved]:
            del self._spent[entry]

    def _today(self) -> int:
        return int(self._clock() // _DAY)


def _save(connection: Connection, rows: list[dict[str, Any]]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    adding = dialect.insert(SPENDING)
    renewed = {"seconds": adding.excluded.seconds}
    connection.execute(
        adding.on_conflict_do_update(index_elements=["account", "day"], set_=renewed), rows
    )
