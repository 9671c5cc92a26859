"""What it costs to let several pictures share a forward of the denoiser, per model and device.

What you can rely on: where nothing was measured, pictures do not share; a batch that the profile
allows gives each picture at least a tenth more speed than drawing one after the other; what was
measured survives restarts, and a damaged file costs a new measurement.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

_log = logging.getLogger(__name__)

_WORTH_IT = 0.9
"""A picture in a batch must cost at most this share of one alone; else latency is lost for nothing."""


class BatchProfile(msgspec.Struct, frozen=True):
    """`seconds` of one forward, by how many pictures of width x height shared it; none where they
    cannot."""

    model: str
    device: str
    width: int
    height: int
    seconds: dict[int, float]

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def cap(self) -> int:
        """The largest number of pictures whose sharing pays."""
        alone = self.seconds.get(1, 0.0)
        paying = (
            count for count, took in self.seconds.items() if took / count <= _WORTH_IT * alone
        )
        return max(paying, default=1)

    def at(self, count: float) -> float:
        """Seconds for `count` pictures, between what was measured and in proportion beyond it."""
        known = sorted(self.seconds.items())
        for (low, below), (high, above) in itertools.pairwise(known):
            if count <= high:
                return below + (above - below) * max(0.0, count - low) / (high - low)
        most, took = known[-1]
        return took * max(1.0, count / most)


class BatchProfiles:
    """All profiles of this installation. `device` is a kind of device, as in `PhaseTimes`."""

    def __init__(self, file: Path | None = None, *, enabled: bool = True) -> None:
        self._file = file
        self._enabled = enabled
        self._profiles: dict[tuple[str, str, int, int], BatchProfile] = {}
        self._found: dict[tuple[str, str, int], BatchProfile | None] = {}
        if file is not None and file.exists():
            with contextlib.suppress(msgspec.DecodeError, OSError, UnicodeDecodeError):
                for one in msgspec.json.decode(file.read_bytes(), type=list[BatchProfile]):
                    self._keep(one)

    def wants(self, model: str, device: str, width: int, height: int) -> bool:
        """Whether a measurement at this size is due: batching is on and there was never one."""
        return self._enabled and (model, device, width, height) not in self._profiles

    def learn(self, profile: BatchProfile) -> None:
        """Take in what was measured, in place of what was known, and store it."""
        self._keep(profile)
        self._save()

    def cap(self, model: str, device: str, width: int, height: int) -> int:
        """How many pictures of this size may share a forward.

        A larger picture fills the device sooner, so its cap shrinks in proportion; a smaller one
        keeps what was measured, for nobody measured more.
        """
        near = self._nearest(model, device, width * height)
        if near is None:
            return 1
        return max(1, int(near.cap / max(1.0, width * height / near.area)))

    def slowdown(self, model: str, device: str, width: int, height: int, count: int) -> float:
        """How many times longer a forward of `count` pictures takes than one of a single picture."""
        near = self._nearest(model, device, width * height)
        if near is None or not near.seconds or count <= 1:
            return 1.0
        scale = max(1.0, width * height / near.area)
        return max(1.0, near.at(count * scale) / near.at(scale))

    def _nearest(self, model: str, device: str, area: int) -> BatchProfile | None:
        name = (model, device, area)
        if name not in self._found:
            self._found[name] = self._search(model, device, area)
        return self._found[name]

    def _search(self, model: str, device: str, area: int) -> BatchProfile | None:
        alike = [
            one for one in self._profiles.values() if (one.model, one.device) == (model, device)
        ]
        if not self._enabled or not alike:
            return None
        return min(alike, key=lambda one: max(one.area, area) / min(one.area, area))

    def _keep(self, profile: BatchProfile) -> None:
        name = (profile.model, profile.device, profile.width, profile.height)
        self._profiles[name] = profile
        self._found.clear()

    def _save(self) -> None:
        if self._file is None:
            return
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(list(self._profiles.values())))
            draft.replace(self._file)
        except OSError as error:
            _log.warning("batch profiles are not stored: %s", error.strerror)


def profile_of(
    model: str, device: str, size: tuple[int, int], seconds: Mapping[int, float]
) -> BatchProfile:
    """A profile from what a pool answers to "profile"; nonsense counts as not measured."""
    sound = {count: took for count, took in seconds.items() if count >= 1 and took > 0}
    return BatchProfile(model, device, *size, sound if 1 in sound else {})
