"""Measured seconds per (model, size, steps, device, phase): what every ETA is made of.

What you can rely on: `expect` always answers, from the first second of a fresh installation; what
was measured can be kept over restarts; a wild measurement among ordinary ones moves no expectation.
Seconds are those of a run that has its device to itself: who shares it takes off what others took.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

import msgspec

from app.domain.events import Phase
from app.domain.progress import WORK_PHASES
from app.domain.request import GenerationRequest
from app.store.timings import Timing

_KEEP = 16
"""Measurements of one kind of work: enough for a median and a ninth decile, few enough to forget."""

_LEAST_SPREAD = 0.3
"""How far above its median the ninth decile of a single measurement is taken to be, as a share of
the median; it shrinks with the root of their number, for that is how well they are known."""

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
    technique: str = ""


class _Usual(msgspec.Struct, frozen=True):
    """Half of all runs take at most `median` seconds, nine of ten at most `above` more."""

    median: float
    above: float


def _usual(samples: list[float]) -> _Usual:
    ranked = sorted(samples)
    median = statistics.median_low(ranked)  # of two, the one that nothing disturbed
    decile = ranked[math.ceil(0.9 * len(ranked)) - 1]
    return _Usual(median, max(decile - median, _LEAST_SPREAD * median / math.sqrt(len(ranked))))


class PhaseTimes:
    """The newest measured seconds; `generating` and `post_processing` are per image."""

    def __init__(self, known: Iterable[Timing] = ()) -> None:
        self._samples: dict[Key, list[float]] = {}
        self._known: dict[Key, _Usual] = {}
        self._unsaved: set[Key] = set()
        self.load(known)

    def load(self, known: Iterable[Timing]) -> None:
        """Take in what an earlier process has measured, the longest unchanged first."""
        for one in known:
            key = msgspec.convert({name: getattr(one, name) for name in Key.__struct_fields__}, Key)
            samples = [sample for sample in one.samples if math.isfinite(sample)][-_KEEP:]
            if samples:
                self._samples[key], self._known[key] = samples, _usual(samples)

    def unsaved(self) -> list[Timing]:
        """What was learnt since `saved` was called for it, for a later `load`."""
        return [
            Timing(**msgspec.structs.asdict(key), samples=self._samples[key])
            for key in self._samples
            if key in self._unsaved
        ]

    def saved(self, timings: Iterable[Timing]) -> None:
        """These are kept somewhere now. What was learnt of them meanwhile is still unsaved."""
        kept = {msgspec.structs.astuple(one)[:-1]: one.samples for one in timings}
        for key in list(self._unsaved):
            samples = kept.get(msgspec.structs.astuple(key))
            if samples is not None and samples == self._samples.get(key, samples):
                self._unsaved.discard(key)

    def expect(
        self,
        request: GenerationRequest,
        device: str,
        *,
        loaded: bool,
        rounds: float | None = None,
    ) -> Mapping[Phase, float]:
        """Seconds that each phase of `request` should take on `device`, all n images together.

        `loaded` says whether the model is already held there, so that loading costs nothing; `rounds`
        how many times the steps of one image all images take: n, unless they share forwards.
        """
        usual = self._phases(request, device, loaded=loaded, rounds=rounds)
        return {phase: one.median for phase, one in usual.items()}

    def spread(
        self,
        request: GenerationRequest,
        device: str,
        *,
        loaded: bool,
        rounds: float | None = None,
    ) -> float:
        """Seconds beyond the sum of `expect` within which nine of ten runs end.

        Phases vary independently, so their spreads add up as squares.
        """
        usual = self._phases(request, device, loaded=loaded, rounds=rounds)
        return math.hypot(*(one.above for one in usual.values()))

    def knows(self, request: GenerationRequest, device: str, phase: Phase = "generating") -> bool:
        """Whether this very kind of work was ever measured."""
        return _key(request, device, phase) in self._samples

    def learn(
        self,
        request: GenerationRequest,
        device: str,
        measured: Mapping[Phase, float],
        *,
        loaded: bool,
        rounds: float | None = None,
    ) -> None:
        """Take in what one finished run measured. A model that was there already teaches no load."""
        for phase, seconds in measured.items():
            if phase == "loading_model" and loaded:
                continue
            key = _key(request, device, phase)
            samples = [*self._samples.pop(key, ()), seconds / _share(request, phase, rounds)]
            self._samples[key] = samples[-_KEEP:]
            self._known[key] = _usual(self._samples[key])
            self._unsaved.add(key)
        while len(self._samples) > _MAX_ENTRIES:
            oldest = next(iter(self._samples))
            del self._samples[oldest], self._known[oldest]
            self._unsaved.discard(oldest)

    def _phases(
        self, request: GenerationRequest, device: str, *, loaded: bool, rounds: float | None
    ) -> dict[Phase, _Usual]:
        found: dict[Phase, _Usual] = {}
        for phase in WORK_PHASES:
            one = self._one(_key(request, device, phase))
            times = _share(request, phase, rounds)
            if phase == "loading_model" and loaded:
                times = 0.0
            found[phase] = _Usual(one.median * times, one.above * times)
        return found

    def _one(self, wanted: Key) -> _Usual:
        if wanted in self._known:
            return self._known[wanted]
        relatives = [
            key
            for key in self._samples
            if key.phase == wanted.phase
            and key.device == wanted.device
            and key.model == wanted.model
        ]
        if not relatives:
            guess = _NEVER_MEASURED[wanted.phase] * _work(wanted)
            return _Usual(guess, guess)
        nearest = min(relatives, key=lambda key: _distance(key, wanted))
        scale = _work(wanted) / _work(nearest)
        known = self._known[nearest]
        return _Usual(known.median * scale, known.above * scale)


def _share(request: GenerationRequest, phase: Phase, rounds: float | None) -> float:
    """How many times the seconds of one image all images take."""
    if phase == "generating" and rounds is not None:
        return rounds
    return float(request.n) if phase in ("generating", "post_processing") else 1.0


def _key(request: GenerationRequest, device: str, phase: Phase) -> Key:
    return Key(
        request.model,
        request.width,
        request.height,
        request.steps_per_image,
        device,
        phase,
        request.technique or ("control" if request.control else ""),
    )


def _work(key: Key) -> float:
    """How the seconds of a phase grow: denoising with pixels x steps, decoding with pixels."""
    megapixels = key.width * key.height / 1e6
    if key.phase == "generating":
        return megapixels * key.steps
    return megapixels if key.phase == "post_processing" else 1.0


def _distance(key: Key, other: Key) -> float:
    pixels = math.log(key.width * key.height) - math.log(other.width * other.height)
    technique = 0.0 if key.technique == other.technique else 0.1
    return abs(pixels) + abs(math.log(key.steps) - math.log(other.steps)) + technique
