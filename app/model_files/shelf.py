"""How the files of every model stand, and who brings them and takes them away.

What you can rely on: a model is fetched once at a time, however many wait for it; one that could not
be fetched is not tried again for some seconds, by nobody but an administrator; models that are
pinned, used or waited for never make room for others. A download that only jobs wanted ends when the
last of them is gone; what an administrator pulled comes to its end. No method waits for the network.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from app.domain.errors import (
    EaselError,
    InvalidRequest,
    ModelInUse,
    ModelNotFetched,
    ModelUnavailable,
)
from app.domain.model_card import ModelCard
from app.model_files import hub
from app.model_files.cache import Cache, free_bytes
from app.model_files.download import Download
from app.model_files.places import localised, places_of
from app.model_files.refusal import Refused
from app.model_files.state import FileState, ModelFiles, State
from app.model_files.usage import Usage

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
"""Seconds for which a model that could not be fetched is not tried again by itself."""

_LOOK_SECONDS = 5.0
"""How often the disk is looked at for files that were not there: others may have brought them."""

_LEFT_FREE = 500_000_000
"""Bytes of the disk that downloads leave alone."""


class _Failure(msgspec.Struct, frozen=True):
    """`temporary` where waiting may help, without anybody doing something about it."""

    reason: str
    until: float
    pause: float
    temporary: bool


class _Standing(msgspec.Struct):
    """One model; `wanted` are those who wait for it, `looked` when the disk was looked at."""

    card: ModelCard
    local: ModelCard | None = None
    files: tuple[FileState, ...] = ()
    wrong: str = ""
    looked: float = 0.0
    download: Download | None = None
    pulled: bool = False
    leaving: bool = False
    wanted: set[str] = msgspec.field(default_factory=set)
    failure: _Failure | None = None

    @property
    def remote(self) -> bool:
        """Whether anything of it comes from the Hub."""
        return bool(self.card.hub or self.card.hub_base)


class ModelShelf:
    """All models that have a card. `max_disk` bounds the bytes of those that come from the Hub (0: no
    limit); `pinned` ones stay, and those that `busy` names. May be asked from any thread."""

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        usage: Usage,
        *,
        bundled: Path,
        auto: bool = True,
        max_disk: int = 0,
        pinned: Collection[str] = (),
        cache: Path | None = None,
    ) -> None:
        self.auto = auto
        self.busy: Callable[[], Collection[str]] = lambda: ()
        self._bundled = bundled
        self._usage = usage
        self._max_disk = max_disk
        self._pinned = frozenset(pinned)
        self._given = cache
        self._closed = False
        self._lock = threading.RLock()
        self._models = {name: _Standing(card) for name, card in cards.items()}
        self._listed = tuple(cards)
        for standing in self._models.values():
            self._look(standing)

    def knows(self, model: str) -> bool:
        """Whether there is, or was, such a model or LoRA."""
        return model in self._models

    def add(self, card: ModelCard) -> None:
        """Know one more, or one that is somewhere else now."""
        with self._lock:
            known = self._models.get(card.id)
            if known is None or known.card != card:
                self._models[card.id] = standing = _Standing(card)
                self._look(standing)

    def renew(self, cards: Mapping[str, ModelCard]) -> None:
        """The cards from now on. A model that has none any more is still known to its jobs."""
        with self._lock:
            for name, card in cards.items():
                standing = self._models.setdefault(name, _Standing(card))
                if standing.looked and standing.card == card:
                    continue
                standing.card, standing.failure = card, None
                if standing.download is None:  # else it is looked at when that has ended
                    self._look(standing)
            self._listed = tuple(cards)

    # -- how models stand --------------------------------------------------------------------------

    def local(self, model: str) -> ModelCard | None:
        """The card with paths, for a worker; None if the files are not all here."""
        with self._lock:
            standing = self._models[model]
            card = standing.local
            if card is None:
                stale = time.monotonic() - standing.looked > _LOOK_SECONDS
            else:  # it may have been taken away by hand
                stale = card.has_files and not Path(card.source).exists()
            if stale and standing.download is None and not standing.leaving:
                self._look(standing)
            return standing.local

    def state(self, model: str) -> ModelFiles:
        with self._lock:
            standing = self._models[model]
            if standing.download is not None:
                return standing.download.state()
            here = self.local(model) is not None
            total = sum(file.bytes_total for file in standing.files)
            known = ModelFiles("not_downloaded", total, total, files=standing.files)
            if (failure := standing.failure) is not None:
                left = max(0.0, failure.until - time.monotonic())
                return replace(known, state="unavailable", reason=failure.reason, retry_in=left)
            if here:
                return replace(known, state=self._kind(standing.card))
            if standing.remote:
                return known
            reason = f"Model {model} cannot be used: {standing.wrong}."
            return ModelFiles("unavailable", reason=reason)

    def refusal(self, model: str) -> ModelUnavailable:
        """Why the model cannot be waited for, where its files are neither here nor on their way."""
        absent = f"Model {model} is not on this server; it has to be pulled."
        with self._lock:
            state, failure = self.state(model), self._models[model].failure
        if failure is None or not failure.temporary:
            return ModelUnavailable(state.reason or absent)
        error = ModelNotFetched(failure.reason)
        error.retry_after = min(59, max(1, math.ceil(state.retry_in or 0.0)))
        return error

    @property
    def models(self) -> list[str]:
        return list(self._listed)

    # -- coming ------------------------------------------------------------------------------------

    def pull(self, model: str) -> None:
        """Fetch what is missing, whether or not anybody waits for it. Returns at once."""
        with self._lock:
            standing = self._models[model]
            standing.failure = None
            self._begin(standing)
            standing.pulled = standing.download is not None

    def want(self, model: str, who: str) -> None:
        """`who` waits for the files until `release`: they are fetched, if they may be."""
        with self._lock:
            standing = self._models[model]
            standing.wanted.add(who)
            failure = standing.failure
            if self.auto and (failure is None or failure.until <= time.monotonic()):
                self._begin(standing)

    def release(self, model: str, who: str) -> None:
        """`who` waits no more. What nobody else wants stops; what has come of it stays."""
        with self._lock:
            standing = self._models[model]
            standing.wanted.discard(who)
            if standing.download and not standing.pulled and not standing.wanted:
                standing.download.stop()
                standing.download = None

    def used(self, model: str) -> None:
        """A job begins with it."""
        self._usage.note(model)

    def note(self, model: str, error: EaselError | None) -> None:
        """A job with it ended well, or with this error. Weights that cannot be loaded count."""
        with self._lock:
            standing = self._models[model]
            if error is None:
                standing.failure = None
            elif isinstance(error, ModelUnavailable):
                standing.failure = self._failure(standing.failure, error.message)

    def close(self, seconds: float = 1.0) -> None:
        """Stop all downloads; the next process goes on with them when it is asked to."""
        with self._lock:
            self._closed = True
            downloads = [one.download for one in self._models.values() if one.download]
        for download in downloads:
            download.stop()
        for download in downloads:
            download.join(seconds)

    def _begin(self, standing: _Standing) -> None:
        model, here = standing.card.id, standing.local is not None
        if here or standing.download or standing.leaving or not standing.remote or self._closed:
            return
        standing.download = Download(
            standing.card,
            self._cache,
            lambda needed: self._make_room(model, needed),
            self._ended,
        )
        standing.download.start()

    def _ended(self, download: Download) -> None:
        standing = self._models[download.card.id]
        self._look(standing)  # without the lock: others ask meanwhile
        with self._lock:
            if standing.download is not download:
                return  # it was stopped, and perhaps another begun
            standing.download, standing.pulled = None, False
            if download.error is not None:
                sentence = f"Model {download.card.id} cannot be fetched: {download.error.reason}."
                standing.failure = self._failure(
                    standing.failure, sentence, temporary=download.error.temporary
                )
            elif not download.stopped:
                standing.failure = None
                self._usage.note(download.card.id)

    @staticmethod
    def _failure(before: _Failure | None, reason: str, *, temporary: bool = False) -> _Failure:
        pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
        return _Failure(reason, time.monotonic() + pause, pause, temporary)

    # -- going -------------------------------------------------------------------------------------

    def remove(self, model: str) -> int:
        """Remove what was fetched for the model; tell the bytes that are free now.

        May take a while: the disk has to forget them. Raises InvalidRequest.
        """
        with self._lock:
            standing = self._models[model]
            if not standing.remote:
                raise InvalidRequest(
                    f"The files of model {model} were not fetched, and stay.", param="model"
                )
            if standing.download or standing.wanted or model in self.busy():
                raise ModelInUse(f"Model {model} is in use or on its way.", param="model")
            self._leave(standing)
        return self._remove(standing)

    def _leave(self, standing: _Standing) -> None:
        standing.leaving, standing.local, standing.failure = True, None, None

    def _remove(self, standing: _Standing) -> int:
        freed = 0
        try:
            others = {
                (place.hub.repo, name)
                for other in list(self._models.values())
                if other is not standing and (other.local or other.download)
                for place in places_of(other.card)
                if place.hub
                for name in place.files(self._cache)
            }
            for place in places_of(standing.card):
                if place.hub is None:
                    continue
                repo = place.hub.repo
                names = [name for name in place.files(self._cache) if (repo, name) not in others]
                commit = self._cache.commit(repo, place.hub.revision)
                freed += self._cache.forget(repo, commit, names) if names else 0
                if not any(repo == used for used, _ in others):
                    self._cache.forget_parts(repo)
        finally:
            self._usage.forget(standing.card.id)
            self._look(standing)
            standing.leaving = False
        return freed

    def _make_room(self, model: str, needed: int) -> None:
        """Have models go that were not used for longest, until `needed` bytes fit. Raises Refused."""
        wanted = f"{_gigabytes(needed)} are needed"
        spared = {model, *self._pinned}
        while self._max_disk and self._taken() + needed > self._max_disk:
            if not self._one_goes(spared):
                raise Refused(f"{wanted}, and max_disk is {_gigabytes(self._max_disk)}")
        while needed and (free := free_bytes(self._cache.root)) < needed + _LEFT_FREE:
            if not (self._max_disk and self._one_goes(spared)):
                free = max(0, free - _LEFT_FREE)
                raise Refused(f"{wanted}, and the disk has room for {_gigabytes(free)}")

    def _one_goes(self, spared: set[str]) -> bool:
        """Whether one was found that may go, and went; it is not found again."""
        with self._lock:
            kept = {*self.busy(), *spared}
            idle = [
                standing
                for name, standing in self._models.items()
                if standing.local and standing.remote and not standing.wanted and name not in kept
            ]
            if not idle:
                return False
            last = min(idle, key=lambda one: self._usage.last(one.card.id))
            spared.add(last.card.id)
            self._leave(last)
        freed = self._remove(last)
        _log.info("the files of model %s made room: %d bytes", last.card.id, freed)
        return True

    def _taken(self) -> int:
        """Bytes of all that was fetched and is whole; shared files count once."""
        standings = [one for one in list(self._models.values()) if one.local is not None]
        return sum(
            {path: size for one in standings for _, path, size in self._paths(one.card)}.values()
        )

    # -- looking at the disk -----------------------------------------------------------------------

    @property
    def _cache(self) -> Cache:
        if self._given is None:
            self._given = hub.cache_root()
        return Cache(self._given)

    def _look(self, standing: _Standing) -> None:
        """See what is there. Reads some kilobytes of every file with weights."""
        card, wrong = standing.card, ""
        local: ModelCard | None = card
        files: tuple[FileState, ...] = ()
        if card.has_files:
            wrong = next(filter(None, (one.missing(self._cache) for one in places_of(card))), "")
            local = None if wrong else localised(card, self._cache)
            if local is not None:
                found = self._paths(card)
                files = tuple(FileState(name, size, size) for name, _, size in found)
        standing.local, standing.files, standing.wrong = local, files, wrong
        standing.looked = time.monotonic()

    def _paths(self, card: ModelCard) -> Iterator[tuple[str, Path, int]]:
        """What was fetched for the card: names, where it lies, and bytes."""
        for place in places_of(card):
            if (snapshot := place.snapshot(self._cache)) is not None:
                for name in place.files(self._cache):
                    path = (snapshot / name).resolve()
                    with suppress(OSError):
                        yield name, path, path.stat().st_size

    def _kind(self, card: ModelCard) -> State:
        inside = Path(card.source).is_relative_to(self._bundled) or card.family == "fake"
        return "bundled" if inside else "on_disk"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
