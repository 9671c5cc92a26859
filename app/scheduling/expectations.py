"""What a job costs: measured seconds, shared forwards and bytes, put together for the schedule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

import msgspec

from app.domain.events import Phase
from app.domain.model_card import ModelCard
from app.domain.progress import Left, ProgressMeter
from app.domain.request import GenerationRequest
from app.scheduling.admission import Kind, Standing
from app.scheduling.batch_profile import BatchProfile, BatchProfiles
from app.scheduling.phase_times import PhaseTimes

MemoryOf = Callable[[ModelCard, str], int]
"""Bytes of a model's weights on a device; 0 where that is not known."""


class Expectations:
    """`device` is a kind of device everywhere: all "cuda:N" of a machine are taken as equal."""

    def __init__(self, times: PhaseTimes, profiles: BatchProfiles, memory_of: MemoryOf) -> None:
        self.times = times
        self.profiles = profiles
        self._memory_of = memory_of
        self._memory: dict[tuple[str, str], tuple[str, int]] = {}
        self._alike: dict[Hashable, Standing] = {}
        """What waiting jobs of one kind cost, until more is learnt."""

    def memory(self, card: ModelCard, device: str) -> int:
        """Bytes of the model's weights; 0 where that is not known. Reads files the first time, and
        again when the card has another source: its files were fetched meanwhile."""
        name = (card.id, device)
        known = self._memory.get(name)
        if known is None or known[0] != card.source:
            known = self._memory[name] = (card.source, self._memory_of(card, device))
            self._alike.clear()
        return known[1]

    def memory_of_held(self, models: Iterable[str], device: str) -> dict[str, int]:
        """The same for models that are held, by their ids."""
        return {model: self._memory.get((model, device), ("", 0))[1] for model in models}

    def cap(self, request: GenerationRequest, device: str) -> int:
        """How many pictures like these may share a forward: 1 where rounding would matter."""
        if request.preset != "exact":
            return 1
        return self.profiles.cap(request.model, device, request.width, request.height)

    def phases(
        self, request: GenerationRequest, device: str, *, loaded: bool
    ) -> Mapping[Phase, float]:
        """Seconds of each phase for a run that has the device to itself."""
        rounds = self._rounds(request, device)
        return self.times.expect(request, device, loaded=loaded, rounds=rounds)

    def seconds(self, request: GenerationRequest, device: str) -> float:
        """Seconds of work, the load of a model not counted."""
        return sum(self.phases(request, device, loaded=True).values())

    def load(self, request: GenerationRequest, device: str) -> float:
        """Seconds to bring the model where it is not held."""
        return self.phases(request, device, loaded=False)["loading_model"]

    def learn(
        self,
        request: GenerationRequest,
        device: str,
        measured: Mapping[Phase, float],
        *,
        loaded: bool,
        shared: bool,
    ) -> None:
        """Take in what a finished run measured.

        Steps are known net of what others took. Where a run `shared` its device, its other phases
        are not, and count only while there is nothing better.
        """
        sound = {
            phase: seconds
            for phase, seconds in measured.items()
            if not shared or phase == "generating" or not self.times.knows(request, device, phase)
        }
        rounds = self._rounds(request, device)
        self._alike.clear()
        self.times.learn(request, device, sound, loaded=loaded, rounds=rounds)

    def learn_profile(self, profile: BatchProfile) -> None:
        """Take in what shared forwards cost."""
        self._alike.clear()
        self.profiles.learn(profile)

    def slowdown_in(self, request: GenerationRequest, device: str) -> Callable[[int], float]:
        """How much longer a step of this request takes in a batch than with its own pictures alone."""
        kind = kind_of(request)
        own = self.slowdown(kind, device, self._pictures(request, device))
        return lambda count: max(1.0, self.slowdown(kind, device, count) / own)

    def slowdown(self, kind: Kind, device: str, count: int) -> float:
        model, width, height = kind
        return self.profiles.slowdown(model, device, width, height, count)

    def waiting(
        self,
        job_id: str,
        card: ModelCard,
        request: GenerationRequest,
        device: str,
        rank: tuple[int, float],
    ) -> Standing:
        """A job of which nothing is done yet."""
        steps, n = request.steps_per_image, request.n
        how = (request.preset, request.technique, request.control, request.loras)
        alike = (*kind_of(request), steps, n, *how, device)
        if alike not in self._alike:
            phases = self.phases(request, device, loaded=False)
            before = phases["initializing"] + phases["preparing"]
            left = Left(before, phases["generating"], phases["post_processing"])
            load = phases["loading_model"]
            self._alike[alike] = self._standing(job_id, card, request, device, rank, left, load)
        return msgspec.structs.replace(self._alike[alike], id=job_id, rank=rank)

    def running(
        self,
        job_id: str,
        card: ModelCard,
        request: GenerationRequest,
        device: str,
        rank: tuple[int, float],
        meter: ProgressMeter,
        now: float,
    ) -> Standing:
        """A job as far as its meter has come."""
        left = meter.left(now)
        return self._standing(job_id, card, request, device, rank, left)

    def _standing(
        self,
        job_id: str,
        card: ModelCard,
        request: GenerationRequest,
        device: str,
        rank: tuple[int, float],
        left: Left,
        load: float = 0.0,
    ) -> Standing:
        rounds = self._rounds(request, device)
        spread = self.times.spread(request, device, loaded=True, rounds=rounds)
        whole = self.seconds(request, device)
        rest = left.before + left.steps + left.after
        return Standing(
            id=job_id,
            kind=kind_of(request),
            rank=rank,
            pictures=self._pictures(request, device),
            cap=self.cap(request, device),
            load=load,
            before=left.before,
            steps=left.steps,
            after=left.after,
            pace=left.pace,
            under_way=left.under_way,
            spread=spread * min(1.0, rest / whole) if whole > 0.0 else spread,
            memory=self.memory(card, device),
            loras=request.loras,
        )

    def _pictures(self, request: GenerationRequest, device: str) -> int:
        """How many of its own pictures take a step together."""
        return min(request.n, self.cap(request, device))

    def _rounds(self, request: GenerationRequest, device: str) -> float:
        """How many times the steps of one picture alone all n take, drawn side by side."""
        kind, together = kind_of(request), self._pictures(request, device)
        whole, rest = divmod(request.n, together)
        rounds = whole * self.slowdown(kind, device, together)
        return rounds + (self.slowdown(kind, device, rest) if rest else 0.0)


def kind_of(request: GenerationRequest) -> Kind:
    return request.model, request.width, request.height


def device_kind(device: str) -> str:
    """Times are learnt per kind of device: all "cuda:N" of a machine are taken as equal."""
    return device.partition(":")[0]
