"""Which LoRAs there are: the files in a folder, and those of the Hub that the settings name.

The folder is looked at anew whenever somebody asks, so that a file can be put there, or taken away,
while the server runs. From then on the shelf of all models knows it, as it knows those of the Hub: a
job waits there until it has come.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from app.domain.errors import InvalidRequest, UnknownLora
from app.domain.lora import NAME, Lora, lora_id
from app.domain.model_card import Defaults, ModelCard
from app.model_files import lora_facts
from app.model_files.lora_facts import LoraFacts
from app.model_files.shelf import ModelShelf
from app.model_files.state import ModelFiles, State

_log = logging.getLogger(__name__)

_TOLD = 20
"""Names that an error lists at most."""


class LoraShown(msgspec.Struct, frozen=True):
    """A LoRA as everybody may see it; `reason` says in a sentence why it cannot be used."""

    name: str
    family: str
    trigger_words: tuple[str, ...]
    bytes: int
    state: State
    reason: str = ""


def lora_card(name: str, source: str, *, file: str = "", revision: str = "") -> ModelCard:
    """What the shelf needs to know of a LoRA. Raises ValueError."""
    if not re.fullmatch(NAME, name):
        raise ValueError("a LoRA's name has letters, digits, dots, dashes and underscores")
    if not (file or source).endswith(".safetensors"):
        raise ValueError("a LoRA is one .safetensors file; name it in `file`")
    return ModelCard(
        id=lora_id(name),
        family="lora",
        source=source,
        file=file,
        revision=revision,
        tasks=(),
        defaults=Defaults(sampler="none"),
    )


class LoraShelf:
    """`hub` are those of the Hub, by name; they go before files of the same name. A request may name
    `most`."""

    def __init__(
        self, folder: Path, hub: Mapping[str, ModelCard], shelf: ModelShelf, *, most: int
    ) -> None:
        self._folder = folder
        self._hub = dict(hub)
        self._shelf = shelf
        self._most = most
        self._facts: dict[Path, tuple[tuple[int, int], LoraFacts | str]] = {}
        self._passed_over: set[str] = set()
        for card in self._hub.values():
            shelf.add(card)
        self.names()

    def names(self) -> list[str]:
        """All that there are now."""
        return sorted({*self._hub, *self._in_folder()})

    def shown(self) -> list[LoraShown]:
        return [self.one(name) for name in self.names()]

    def one(self, name: str) -> LoraShown:
        """Raises UnknownLora."""
        if not self.knows(name):
            known = self.names()
            more = " …" if len(known) > _TOLD else ""
            told = f" LoRAs: {', '.join(known[:_TOLD])}{more}." if known else ""
            raise UnknownLora(f"This LoRA does not exist here.{told}", param="loras")
        files = self._shelf.state(lora_id(name))
        card = self._shelf.local(lora_id(name))
        facts = self._read(Path(card.source)) if card is not None else ""
        if isinstance(facts, str):
            return LoraShown(name, "", (), files.bytes_total, *_unusable(name, files, facts))
        return LoraShown(name, facts.family, facts.trigger_words, facts.bytes, files.state)

    def pull(self, name: str) -> LoraShown:
        """Fetch it if it is not here; how it stands then. Raises UnknownLora."""
        self.one(name)
        self._shelf.pull(lora_id(name))
        return self.one(name)

    def check(self, loras: Iterable[Lora], card: ModelCard) -> None:
        """Raises InvalidRequest and UnknownLora: one cannot be used with the model, as far as that can
        be told before it is loaded; or there are too many."""
        wanted = list(loras)
        if len(wanted) > self._most:
            raise InvalidRequest(f"At most {self._most} LoRAs may be named.", param="loras")
        for one in wanted:
            found = self.one(one.name)
            coming = one.name in self._hub and self._shelf.local(lora_id(one.name)) is None
            if found.reason and not coming:
                raise InvalidRequest(found.reason, param="loras")
            lora_facts.check_family(one.name, found.family, card)

    def knows(self, name: str) -> bool:
        return name in self._hub or name in self._in_folder()

    def _in_folder(self) -> set[str]:
        """Names of the files that are there now; the shelf knows them then."""
        found: set[str] = set()
        for path in self._folder.glob("*.safetensors"):
            if not re.fullmatch(NAME, path.stem):
                if path.name not in self._passed_over:
                    self._passed_over.add(path.name)
                    _log.warning("the name of a LoRA cannot be used: %r", path.name)
            elif path.stem not in self._hub and path.is_file():
                self._shelf.add(lora_card(path.stem, str(path.absolute())))
                found.add(path.stem)
        return found

    def _read(self, path: Path) -> LoraFacts | str:
        """What the file tells, or why it cannot be used; read again when it was changed."""
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._facts.get(path)
            if known is None or known[0] != stamp:
                known = self._facts[path] = (stamp, lora_facts.read(path))
            return known[1]
        except OSError:
            return "its file cannot be read"
        except ValueError as error:
            self._facts[path] = (stamp, str(error))
            return str(error)


def _unusable(name: str, files: ModelFiles, wrong: str) -> tuple[State, str]:
    if wrong:
        return "unavailable", f"LoRA {name} cannot be used: {wrong}."
    return files.state, files.reason.replace(f"Model {lora_id(name)}", f"LoRA {name}")
