"""Jobs whose model, control network or LoRAs are not here yet: they wait outside of the queue.

What you can rely on: the queue and its forecasts know nothing of these jobs, so that other models'
jobs go on; each job keeps its place by the time of its submission; progress stays within the phase
`loading_model` and never falls, nor does `eta_seconds` grow; a download that fails fails its jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from app.domain.control import PARAM
from app.domain.errors import EaselError
from app.job_board import JobBoard
from app.model_files.shelf import ModelShelf
from app.model_files.state import ModelFiles
from app.scheduling.forecast import Outlook
from app.scheduling.schedule import Entry

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_TELL_SECONDS = 1.0
"""How often those who wait are told of bytes that came."""

_SLOW = 5e6
"""Bytes per second that are counted on before any came: an estimate may fall later, but not grow."""

_UNKNOWN_SECONDS = 1800.0
"""What a download is taken to last as long as not even its size is known."""


class Arrivals:
    """`outlooks` tells what a job could expect if its model were here, `admit` queues it with what it
    needs, `fail` ends it."""

    def __init__(
        self,
        shelf: ModelShelf,
        board: JobBoard,
        outlooks: Callable[[Entry], Mapping[str, Outlook]],
        *,
        admit: Callable[[Entry], None],
        fail: Callable[[Entry, EaselError], None],
    ) -> None:
        self._shelf = shelf
        self._board = board
        self._outlooks = outlooks
        self._admit = admit
        self._fail = fail
        self._entries: dict[str, Entry] = {}
        self._told: dict[str, tuple[float, int, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterable[Entry]:
        return list(self._entries.values())

    def models(self) -> set[str]:
        return {name for entry in self.entries() for name in entry.needs}

    def add(self, entry: Entry) -> None:
        """Let the job wait; or admit it, or fail it, where that is clear at once."""
        self._entries[entry.job.id] = entry
        for name in entry.needs:
            self._shelf.want(name, entry.job.id)
        self._look(entry)

    def drop(self, job_id: str) -> Entry | None:
        """The job waits no more; None if it does not wait."""
        entry = self._entries.pop(job_id, None)
        self._told.pop(job_id, None)
        if entry is not None:
            for name in entry.needs:
                self._shelf.release(name, job_id)
        return entry

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for entry in self.entries():
                try:
                    self._look(entry)
                except Exception:  # one job must not keep all others waiting
                    _log.exception("job %s", entry.job.id)
                    self.drop(entry.job.id)
                    self._fail(entry, EaselError("The server made a mistake; its log says more."))

    def _look(self, entry: Entry) -> None:
        found = {name: self._shelf.local(name) for name in entry.needs}
        model = next((name for name, card in found.items() if card is None), entry.card.id)
        if (local := found[model]) is not None:
            entry.card, entry.standing = local, None
            self._admit(entry)  # before it is dropped: until then its files are kept
            self.drop(entry.job.id)
            return
        files = self._shelf.state(model)
        if files.state == "not_downloaded" and self._shelf.auto:
            self._shelf.want(model, entry.job.id)  # it was about to leave before
        elif files.state != "downloading":
            self.drop(entry.job.id)
            error = self._shelf.refusal(model)
            error.param = None if model == entry.card.id else PARAM
            self._fail(entry, error)
            return
        self._tell(entry, model, files)

    def _tell(self, entry: Entry, model: str, files: ModelFiles) -> None:
        now = time.monotonic()
        last, done, total = self._told.get(entry.job.id, (0.0, -1, -1))
        news = (files.bytes_done, files.bytes_total) != (done, total)
        if total == files.bytes_total and not (news and now - last >= _TELL_SECONDS):
            return
        self._told[entry.job.id] = (now, files.bytes_done, files.bytes_total)
        share = files.bytes_done / files.bytes_total if files.bytes_total else 0.0
        seconds = _seconds(files) + self._outlooks(entry)[entry.job.id].end
        message = _message(model, files)
        self._board.publish(entry.job.id, entry.meter.fetch(share, seconds, message, now))


def _seconds(files: ModelFiles) -> float:
    if not files.bytes_total:
        return _UNKNOWN_SECONDS
    if files.seconds_left is None:
        return (files.bytes_total - files.bytes_done) / _SLOW
    return files.seconds_left


def _message(model: str, files: ModelFiles) -> str:
    if not files.bytes_total:
        return f"Downloading {model}: looking up its files"
    unit, name = (1e9, "GB") if files.bytes_total >= 1e9 else (1e6, "MB")
    done, total = files.bytes_done / unit, files.bytes_total / unit
    pace = f", {files.bytes_per_second / 1e6:.0f} MB/s" if files.bytes_per_second else ""
    return f"Downloading {model}: {done:.1f} of {total:.1f} {name}{pace}"
