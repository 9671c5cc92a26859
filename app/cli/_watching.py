"""All jobs of who asks that are not done yet, a bar for each, by the one stream that tells of all."""

from __future__ import annotations

import json

from app.cli._progress import Bars
from app.cli._server import OPENED, Json, Server, Standing
from app.cli._shell import ENDS, console, shown, stop
from app.domain.errors import NotFound, Unavailable
from app.domain.job import Status

_MOST = 1000
_LAST: dict[str, Status] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}
"""Events that end a job, and what it is then."""


class _Watched:
    """The jobs that were not done when it began. Those of others leave it when their owner is seen
    to be another."""

    def __init__(self, server: Server, bars: Bars, *, as_json: bool, as_events: bool) -> None:
        self._server = server
        self._bars = bars
        self._as_json = as_json or as_events
        self._as_events = as_events
        self._told: set[str] = set()
        self._all_told = False
        self.going: dict[str, None] = {}
        self.ended: dict[str, Status] = {}

    def take(self, job: Standing) -> None:
        self.going[job.id] = None
        self._bars.add(job.id, f"{job.id}  {job.model}", job.message or job.status)

    def look_again(self) -> None:
        """What became of jobs while no stream told of them."""
        self._told.clear()
        self._all_told = False
        for name in list(self.going):
            try:
                told = self._server.ask("GET", f"/jobs/{name}")
            except NotFound:  # cancelled, and forgotten
                self._end(name, "cancelled")
            except Unavailable:  # then the stream breaks as well, and this is asked again
                return
            else:
                self.stands(self._server.standing(told))

    def stands(self, job: Standing) -> None:
        if job.id not in self.going:
            return
        if job.ended:
            self._end(job.id, job.status)
        else:
            self._bars.tell(job.id, job.message or job.status, job.fraction, job.eta_seconds)

    def heard(self, name: str, data: Json) -> None:
        if name == "job":
            if self._all_told:  # so much was missed that all is told anew
                self.look_again()
            job = self._server.standing(data)
            self._told.add(job.id)
            self.stands(job)
            return
        self.only_mine()
        job_id, number = str(data.get("job_id")), data.get("number")
        if job_id not in self.going or not isinstance(number, int):
            return
        if self._as_events:
            print(json.dumps({"event": name, **data}), flush=True)
        numbered = self._server.event(name, data, number)
        if numbered is not None:
            self._bars.heard(job_id, numbered.event)
        if name in _LAST:
            self._end(job_id, _LAST[name])

    def only_mine(self) -> None:
        """All of the caller's jobs have been told: the others are somebody else's."""
        self._all_told = True
        for name in self.going.keys() - self._told:
            del self.going[name]
            self._bars.remove(name)

    def _end(self, name: str, status: Status) -> None:
        del self.going[name]
        self.ended[name] = status
        self._bars.remove(name)
        if not self._as_json:
            print(f"{shown(name)}  {status}", flush=True)


def watch_all(server: Server, *, as_json: bool, as_events: bool) -> int:
    """Show them to their ends; the exit code: of the first of failed, expired, cancelled that any of
    them is. Raises what `Server` raises."""
    bars = Bars(named=True)
    watched = _Watched(server, bars, as_json=as_json, as_events=as_events)
    for status in ("queued", "running"):  # so that none is missed which begins meanwhile
        for job in server.jobs({"status": status, "limit": _MOST}):
            watched.take(server.standing(job))
    try:
        with bars:
            _watch(server, watched, bars)
    except KeyboardInterrupt:
        stop("stopped; the jobs go on", 130)
    if as_json or as_events:
        print(json.dumps({"jobs": watched.ended}, indent=None if as_events else 2))
    elif not watched.ended:
        console.print("no job of yours is under way")
    found = set(watched.ended.values())
    return next((ENDS[one] for one in ("failed", "expired", "cancelled") if one in found), 0)


def _watch(server: Server, watched: _Watched, bars: Bars) -> None:
    if not watched.going:
        return
    for news in server.feed(bars.trouble):
        if news is OPENED:
            watched.look_again()
        elif news is None:
            watched.only_mine()
        else:
            watched.heard(*news)
        if not watched.going:
            return
