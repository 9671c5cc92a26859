"""Where the files of a card are, or will be: what it takes from the Hub, and what lies here anyway."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from app.domain.model_card import ModelCard
from app.domain.model_source import HubSource, is_single_file
from app.model_files import folder
from app.model_files.cache import Cache
from app.model_files.selection import DENOISERS, INDEX, of_part, parts_of, wanted


class Place(msgspec.Struct, frozen=True):
    """One source of a card. Of a `base` only that is needed which is not in the single file. A
    `part` is one network by itself, in a folder without an index."""

    path: Path | None
    hub: HubSource | None
    base: bool = False
    part: bool = False

    def here(self, cache: Cache) -> Path | None:
        """The folder or file, if it is known where it would lie; it need not be there."""
        if self.hub is None:
            return self.path
        snapshot = self.snapshot(cache)
        return snapshot / self.hub.file if snapshot else None

    def snapshot(self, cache: Cache) -> Path | None:
        """The folder below which all that is fetched for it lies, if anything was."""
        if self.hub is None:
            return None
        commit = cache.commit(self.hub.repo, self.hub.revision)
        return cache.snapshot(self.hub.repo, commit) if commit else None

    def missing(self, cache: Cache) -> str:
        """What is wrong there, as the end of a sentence; "" if nothing is."""
        path = self.here(cache)
        if path is None:
            return "it was not fetched yet"
        try:
            if is_single_file(path.name):
                return folder.wrong_file(path)
            if self.part:
                return folder.missing_part(path)
            return folder.missing(path, self.elsewhere(path))
        except OSError:
            return "its files cannot be read"

    def elsewhere(self, path: Path) -> Collection[str]:
        """The parts of the folder whose weights come from the single file.

        A checkpoint with a UNet holds its text encoders and its autoencoder too; where there is a
        transformer, the file is that alone.
        """
        if not self.base:
            return ()
        try:
            return weightless(parts_of((path / INDEX).read_bytes()))
        except (OSError, ValueError):
            return ()

    def files(self, cache: Cache) -> list[str]:
        """Names of the files that lie here and are this card's."""
        path = self.here(cache)
        if self.hub is None or path is None:
            return []
        if self.hub.file:
            return [self.hub.file] if path.exists() else []
        if self.part:
            return sorted(of_part({one.name for one in path.glob("*")}))
        try:
            parts = parts_of((path / INDEX).read_bytes())
        except (OSError, ValueError):
            return []
        names = [str(one.relative_to(path).as_posix()) for one in path.glob("*/*")]
        return wanted([INDEX, *names], parts, weightless(parts) if self.base else ())


def weightless(parts: Collection[str]) -> Collection[str]:
    """Of a base's parts, those that bring no weights of their own."""
    return tuple(parts) if DENOISERS[0] in parts else (DENOISERS[1],)


def places_of(card: ModelCard) -> Iterator[Place]:
    """The card's source, and the base of a single file."""
    path, part = None if card.hub else Path(card.source), card.family == "control"
    yield Place(path, card.hub, part=part)
    if card.base:
        yield Place(None if card.hub_base else Path(card.base), card.hub_base, base=True)


def localised(card: ModelCard, cache: Cache) -> ModelCard:
    """The card with paths for names, as a worker needs it. All of it must be here."""
    source, *base = (str(place.here(cache)) for place in places_of(card))
    return card.model_copy(update={"source": source, "file": "", "base": base[0] if base else ""})
