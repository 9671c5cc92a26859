"""One model on its way: a thread that fetches what is missing, and says how far it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from filelock import FileLock, Timeout

from app.domain.model_card import ModelCard
from app.model_files import hub
from app.model_files.cache import Cache
from app.model_files.hub import RemoteFile
from app.model_files.pace import Pace
from app.model_files.places import Place, places_of, weightless
from app.model_files.refusal import Refused, Stopped
from app.model_files.selection import CONFIG, INDEX, of_part, parts_of, wanted
from app.model_files.state import FileState, ModelFiles

T = TypeVar("T")

_log = logging.getLogger(__name__)

_ATTEMPTS = 4
_FIRST_PAUSE = 1.0
"""What may be different a second later is tried again after this many seconds, and twice as many …"""

_LOOK_SECONDS = 0.2
"""How often one who waits for another process looks whether he is to stop."""


class _File(msgspec.Struct):
    repo: str
    commit: str
    remote: RemoteFile
    done: int = 0


class Download:
    """Fetches the files of a card; from `start` to `ended` it is on its way.

    What you can rely on: what has come is kept when it stops or fails, and the next download goes on
    from there; no file is shown to anybody before its content was found to be what the Hub says; two
    processes do not fetch from one repository at once. `make_room` is called once, with the bytes
    that are to come, before the first of them; it may raise Refused.
    """

    def __init__(
        self,
        card: ModelCard,
        cache: Cache,
        make_room: Callable[[int], None],
        ended: Callable[[Download], None],
    ) -> None:
        self.card = card
        self.error: Refused | None = None
        self._cache = cache
        self._make_room = make_room
        self._ended = ended
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._planned = False
        self._pace = Pace()
        self._most = 0
        self._thread = threading.Thread(target=self._run, name=f"fetch {card.id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it soon. What has come stays."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def state(self) -> ModelFiles:
        """How far it is. `bytes_done` never falls, also when something has to be fetched again."""
        now = time.monotonic()
        with self._lock:
            if not self._planned:
                return ModelFiles("downloading")
            files = tuple(FileState(f.remote.name, f.done, f.remote.size) for f in self._files)
            rate = self._pace.bytes_per_second(now)
            done = sum(file.bytes_done for file in files)
            self._most = max(self._most, done)
            most = self._most
        total = sum(file.bytes_total for file in files)
        left = (total - done) / rate if rate > 0.0 else None
        return ModelFiles("downloading", most, total, rate, left, files)

    # -- in its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._fetch_all()
        except Stopped:
            pass
        except Refused as error:
            self.error = error
            _log.warning("model %s cannot be fetched: %s", self.card.id, error.reason)
        except Exception:  # a mistake of ours must not look like a download that goes on for ever
            _log.exception("model %s", self.card.id)
            self.error = Refused("the server made a mistake; its log says more")
        finally:
            self._ended(self)

    def _fetch_all(self) -> None:
        places = list(places_of(self.card))
        with ExitStack() as held:
            for repo in sorted({place.hub.repo for place in places if place.hub}):
                held.enter_context(self._alone_in(repo))
            files = [file for place in places for file in self._needed(place)]
            with self._lock:
                self._files = files
                for file in files:
                    file.done = self._lying_here(file)
                self._pace.note(time.monotonic(), sum(file.done for file in files))
                self._planned = True
            self._make_room(sum(file.remote.size - file.done for file in files))
            for file in files:
                self._bring(file)
        for place in places:
            if wrong := place.missing(self._cache):
                raise Refused(f"{wrong}; that is how its repository is")

    @contextmanager
    def _alone_in(self, repo: str) -> Iterator[None]:
        """Other processes fetch from this repository too: one after the other."""
        lock = FileLock(self._cache.lock(repo))
        while not lock.is_locked:
            self._check()
            with suppress(Timeout):
                lock.acquire(timeout=_LOOK_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def _needed(self, place: Place) -> list[_File]:
        if (source := place.hub) is None:
            return []
        listing = self._patiently(lambda: hub.list_files(source.repo, source.revision))
        by_name = {file.name: file for file in listing.files}

        def named(name: str) -> _File:
            if name not in by_name:
                told = name if name in {INDEX, CONFIG} else "such file"
                raise Refused(f"its repository has no {told}")
            return _File(source.repo, listing.commit, by_name[name])

        if source.file:
            files = [named(source.file)]
        elif place.part:
            top = of_part([name for name in by_name if "/" not in name])
            files = [named(name) for name in sorted({CONFIG, *top})]
        else:
            index = named(INDEX)
            self._bring(index)
            path = self._cache.snapshot(source.repo, listing.commit) / INDEX
            try:
                parts = parts_of(path.read_bytes())
            except (OSError, ValueError) as error:
                raise Refused("its model_index.json cannot be used") from error
            without = weightless(parts) if place.base else ()
            files = [named(name) for name in wanted(by_name, parts, without)]
        self._cache.remember(source.repo, source.revision, listing.commit)
        return files

    def _lying_here(self, file: _File) -> int:
        """Bytes of the file that are here already. Whole ones are shown at once."""
        repo, etag = file.repo, file.remote.etag
        blob, part = self._cache.blob(repo, etag), self._cache.part(repo, etag)
        if _size(blob) == file.remote.size and blob.exists():
            self._cache.link(repo, file.commit, file.remote.name, etag)
            return file.remote.size
        return min(_size(part), file.remote.size)

    def _bring(self, file: _File) -> None:
        if self._lying_here(file) == file.remote.size and self._shown(file):
            return
        part = self._cache.part(file.repo, file.remote.etag)
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            if self._patiently(lambda: self._fetch(file, part)):
                part.replace(self._cache.blob(file.repo, file.remote.etag))
                self._cache.link(file.repo, file.commit, file.remote.name, file.remote.etag)
                return
            part.unlink(missing_ok=True)
            with self._lock:
                file.done = 0
            _log.warning("model %s: a file came damaged", self.card.id)
        raise Refused("a file of it came damaged, twice", temporary=True)

    def _shown(self, file: _File) -> bool:
        return (self._cache.snapshot(file.repo, file.commit) / file.remote.name).exists()

    def _fetch(self, file: _File, part: Path) -> bool:
        def count(came: int) -> None:
            self._check()
            with self._lock:
                file.done += came
                if self._planned and came:
                    self._pace.note(time.monotonic(), sum(one.done for one in self._files))

        file.done = min(_size(part), file.remote.size)
        return hub.fetch(file.repo, file.commit, file.remote, part, count)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """What it returns; tried some times more where that may help. Raises Refused, Stopped."""
        failed, pause, done = 0, _FIRST_PAUSE, -1
        while True:
            self._check()
            try:
                return attempt()
            except Refused as error:
                now = sum(file.done for file in self._files)
                failed, pause = (1, _FIRST_PAUSE) if now > done else (failed + 1, pause * 2)
                done = max(done, now)
                if not error.temporary or failed >= _ATTEMPTS:
                    raise
            self._stop.wait(pause)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
