"""Measured seconds per (model, size, steps, device, phase): what every ETA is made of.

What you can rely on: `expect` always answers, from the first second of a fresh installation; what
was measured survives restarts; one wild measurement moves an expectation by at most 30 percent of
the difference.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from app.domain.events import Phase
from app.domain.progress import WORK_PHASES
from app.domain.request import GenerationRequest

_log = logging.getLogger(__name__)

_NEW_SHARE = 0.3
"""Weight of the newest measurement in the running mean: about the last six runs count."""

_MAX_ENTRIES = 5000

_NEVER_MEASURED: dict[Phase, float] = {
    "initializing": 0.01,
    "loading_model": 5.0,
    "preparing": 0.2,
    "generating": 8.0,  # seconds for one step of one megapixel
    "post_processing": 1.0,  # seconds for one megapixel
}
"""Guesses for a machine that has not drawn anything yet; replaced by the first run."""


class Key(msgspec.Struct, frozen=True):
    """One kind of work. `steps` are per image; `device` is a kind of device, not its number."""

    model: str
    width: int
    height: int
    steps: int
    device: str
    phase: Phase


class _Entry(msgspec.Struct):
    key: Key
    seconds: float


class PhaseTimes:
    """Running means of measured seconds; `generating` and `post_processing` are per image."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._seconds: dict[Key, float] = {}
        self._changed = False
        if file is not None and file.exists():
            # A damaged file costs estimates, never a start.
            with contextlib.suppress(msgspec.DecodeError, OSError, UnicodeDecodeError):
                entries = msgspec.json.decode(file.read_bytes(), type=list[_Entry])
                self._seconds = {entry.key: entry.seconds for entry in entries}

    def expect(
        self, request: GenerationRequest, device: str, *, loaded: bool
    ) -> Mapping[Phase, float]:
        """Seconds that each phase of `request` should take on `device`, all n images together.

        `loaded` says whether the model is already held there, so that loading costs nothing.
        """
        seconds = {phase: self._one(request, device, phase) for phase in WORK_PHASES}
        if loaded:
            seconds["loading_model"] = 0.0
        for phase in ("generating", "post_processing"):
            seconds[phase] *= request.n
        return seconds

    def knows(self, request: GenerationRequest, device: str) -> bool:
        """Whether this very kind of work was ever measured."""
        return _key(request, device, "generating") in self._seconds

    def learn(
        self,
        request: GenerationRequest,
        device: str,
        measured: Mapping[Phase, float],
        *,
        loaded: bool,
    ) -> None:
        """Take in what one finished run measured. A model that was there already teaches no load."""
        for phase, seconds in measured.items():
            if phase == "loading_model" and loaded:
                continue
            per_image = phase in ("generating", "post_processing")
            newest = seconds / request.n if per_image else seconds
            key = _key(request, device, phase)
            known = self._seconds.pop(key, newest)
            self._seconds[key] = known + _NEW_SHARE * (newest - known)
            self._changed = True
        while len(self._seconds) > _MAX_ENTRIES:
            del self._seconds[next(iter(self._seconds))]

    def save(self) -> None:
        """Write what is new to the file, all of it or nothing; a disk that refuses is tried again."""
        if self._file is None or not self._changed:
            return
        entries = [_Entry(key, seconds) for key, seconds in self._seconds.items()]
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(entries))
            draft.replace(self._file)
        except OSError as error:
            _log.warning("measured times are not stored: %s", error.strerror)
        else:
            self._changed = False

    def _one(self, request: GenerationRequest, device: str, phase: Phase) -> float:
        wanted = _key(request, device, phase)
        if wanted in self._seconds:
            return self._seconds[wanted]
        relatives = [
            key
            for key in self._seconds
            if key.phase == phase and key.device == device and key.model == request.model
        ]
        if relatives:
            nearest = min(relatives, key=lambda key: _distance(key, wanted))
            return self._seconds[nearest] * _work(wanted) / _work(nearest)
        return _NEVER_MEASURED[phase] * _work(wanted)


def _key(request: GenerationRequest, device: str, phase: Phase) -> Key:
    return Key(request.model, request.width, request.height, request.steps_per_image, device, phase)


def _work(key: Key) -> float:
    """How the seconds of a phase grow: denoising with pixels x steps, decoding with pixels."""
    megapixels = key.width * key.height / 1e6
    if key.phase == "generating":
        return megapixels * key.steps
    return megapixels if key.phase == "post_processing" else 1.0


def _distance(key: Key, other: Key) -> float:
    pixels = math.log(key.width * key.height) - math.log(other.width * other.height)
    return abs(pixels) + abs(math.log(key.steps) - math.log(other.steps))
