"""The LoRAs of one loaded model.

A set of LoRAs never touches the model itself. It gets modules of its own over the same weights, and
stock diffusers puts its adapters into that. So a picture without LoRAs is drawn by what was loaded,
pictures with different sets run side by side and cannot disturb each other, a forward is shared only
within a set, and a file that does not fit leaves nothing behind.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.domain.errors import InvalidRequest, OutOfMemory
from app.domain.lora import Lora
from app.domain.model_card import ModelCard
from app.engines.pipeline_view import DENOISERS
from app.engines.techniques import Techniques
from app.model_files import lora_facts

_MOST_SETS = 16
"""Sets that are kept at most: one with other scales has no weights of its own, but thousands of
objects."""

_LOOK_SECONDS = 0.05
"""How often one who waits looks whether he was called off."""

File = tuple[str, str, int, int]
"""A LoRA's name, its file, and when and how long that was written."""

Do = Callable[[Callable[[], "Adapted"]], "Adapted"]


class Adapted:
    """A set of LoRAs in place: the parts of the model that it changes. `key` is equal for sets that
    act alike; `hashes` has the name and the hash of each LoRA."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        key: tuple[tuple[File, float], ...] = (),
        hashes: tuple[tuple[str, str], ...] = (),
        own: Iterable[Tensor] = (),
    ) -> None:
        self.parts = parts
        self.key = key
        self.hashes = hashes
        self.own = tuple(own)
        self._denoisers = {
            name: Techniques(part) for name, part in parts.items() if name in DENOISERS
        }

    def pipeline(self, pipeline: Any) -> Any:
        """The same pipeline with these parts in it."""
        return _with_parts(pipeline, self.parts) if self.parts else pipeline

    def denoisers(self, plain: Mapping[str, Techniques]) -> Mapping[str, Techniques]:
        return {**plain, **self._denoisers}

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(file for file, _ in self.key)


PLAIN = Adapted({})
"""No LoRA at all."""


class Adapters:
    """Sets of LoRAs over the parts of `pipeline`, those used last within `room` bytes.

    `building` is held while modules are made: libraries change for the whole process meanwhile how that
    is done.
    """

    def __init__(
        self, pipeline: Any, card: ModelCard, device: str, *, room: int, building: threading.Lock
    ) -> None:
        self._pipeline = pipeline
        self._card = card
        self._device = device
        self._room = room
        self._building = building
        self._kept: OrderedDict[tuple[tuple[File, float], ...], Adapted] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def memory(self) -> int:
        """Bytes of the adapters' weights."""
        with self._lock:
            return self._bytes()

    def take(self, loras: Sequence[Lora], check: Callable[[], None], do: Do) -> Adapted:
        """The set, built by `do` if it is not here. Order matters to the last bit; LoRAs with a scale
        of 0 are none. `check` is called while others are waited for, and its exception ends the wait.

        Raises:
            InvalidRequest: a file is gone, damaged, or not for this model.
            OutOfMemory: the device has no room for it.
        """
        wanted = [one for one in loras if one.scale]
        if not wanted:
            return PLAIN
        key = tuple((_file(one), one.scale) for one in wanted)
        if (known := self._known(key)) is not None:
            return known
        with self._alone(check):
            if (known := self._known(key)) is not None:  # another built it meanwhile
                return known
            kin = self._kin(key)
            hashes = kin.hashes if kin else tuple((one.name, self._digest(one)) for one in wanted)
            check()
            built = do(partial(self._build, wanted, key, hashes, kin))
        with self._lock:
            self._kept[key] = built
            while len(self._kept) > 1 and self._full():
                self._kept.popitem(last=False)
        return built

    def clear(self) -> None:
        """Let go of all sets; those in use go when they are used no more."""
        with self._lock:
            self._kept.clear()

    def _known(self, key: tuple[tuple[File, float], ...]) -> Adapted | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _kin(self, key: tuple[tuple[File, float], ...]) -> Adapted | None:
        """A set of the same files, with other scales."""
        files = tuple(file for file, _ in key)
        with self._lock:
            return next((one for one in self._kept.values() if one.files == files), None)

    def _full(self) -> bool:
        return len(self._kept) > _MOST_SETS or self._bytes() > self._room

    def _bytes(self) -> int:
        weights = {id(one): one.nbytes for kept in self._kept.values() for one in kept.own}
        return sum(weights.values())

    @contextmanager
    def _alone(self, check: Callable[[], None]) -> Iterator[None]:
        while not self._building.acquire(timeout=_LOOK_SECONDS):
            check()
        try:
            yield
        finally:
            self._building.release()

    def _digest(self, lora: Lora) -> str:
        """The file's hash, if it may be loaded; it is read whole for that, and loads faster then."""
        try:
            facts = lora_facts.read(Path(lora.file))
            digest = lora_facts.digest(Path(lora.file))
        except (OSError, ValueError) as error:
            wrong = "its file cannot be read" if isinstance(error, OSError) else str(error)
            raise InvalidRequest(
                f"LoRA {lora.name} cannot be used: {wrong}.", param="loras"
            ) from error
        lora_facts.check_family(lora.name, facts.family, self._card)
        return digest

    # -- building ----------------------------------------------------------------------------------

    def _build(
        self,
        loras: Sequence[Lora],
        key: tuple[tuple[File, float], ...],
        hashes: tuple[tuple[str, str], ...],
        kin: Adapted | None,
    ) -> Adapted:
        before = kin.parts if kin else self._loadable()
        parts = {name: _twin(part) for name, part in before.items()}
        pipeline = _with_parts(self._pipeline, parts)
        names = [f"lora{number}" for number in range(len(loras))]  # theirs may hold dots
        if kin is None:
            for name, one in zip(names, loras, strict=True):
                self._load(pipeline, parts, one, name)
        pipeline.set_adapters(names, [one.scale for one in loras])
        changed = {name: part for name, part in parts.items() if hasattr(part, "peft_config")}
        shared = {id(weight) for part in self._loadable().values() for weight in _weights(part)}
        own = [one for part in changed.values() for one in _weights(part) if id(one) not in shared]
        try:
            for weight in own:  # a part that takes turns may be elsewhere now
                weight.data = weight.data.to(self._device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The device has no room for the LoRAs.") from error
        return Adapted(changed, key, hashes, own)

    def _loadable(self) -> dict[str, Any]:
        """The parts that diffusers can put a LoRA into."""
        names = getattr(self._pipeline, "_lora_loadable_modules", ())
        parts = {name: getattr(self._pipeline, name, None) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def _load(self, pipeline: Any, parts: Mapping[str, Any], lora: Lora, name: str) -> None:
        path = Path(lora.file)
        try:
            pipeline.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The device has no room for the LoRAs.") from error
        except Exception as error:  # whatever converters, peft and torch raise
            raise InvalidRequest(
                f"LoRA {lora.name} does not fit model {self._card.id}.", param="loras"
            ) from error
        if not any(name in getattr(part, "peft_config", ()) for part in parts.values()):
            raise InvalidRequest(
                f"LoRA {lora.name} holds nothing for model {self._card.id}.", param="loras"
            )


def _file(lora: Lora) -> File:
    try:
        status = Path(lora.file).stat()
    except OSError as error:
        raise InvalidRequest(f"LoRA {lora.name} is not here any more.", param="loras") from error
    return lora.name, lora.file, status.st_mtime_ns, status.st_size


def _weights(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()]


def _twin(part: Any) -> Any:
    """A second set of modules over the same weights."""
    return copy.deepcopy(part, {id(weight): weight for weight in _weights(part)})


def _with_parts(pipeline: Any, parts: Mapping[str, Any]) -> Any:
    view = object.__new__(type(pipeline))
    view.__dict__.update(pipeline.__dict__)
    view.__dict__.update(parts)
    return view
