"""All jobs between submission and end: who waits, who runs where, and when each will be done.

Decides and foretells; starts nothing and tells nobody. Times are seconds of one monotonic clock that
the caller reads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from app.domain.control import PARAM
from app.domain.errors import EaselError
from app.domain.job import Job
from app.domain.lora import lora_id
from app.domain.memory_plan import Room as Memory
from app.domain.model_card import ModelCard
from app.domain.progress import ProgressMeter
from app.domain.request import GenerationRequest
from app.engines.base import Sharing
from app.engines.fitting import plan_told
from app.scheduling.admission import Room, Standing, may_start, next_to_start, rank_beside
from app.scheduling.expectations import Expectations, device_kind
from app.scheduling.fair_queue import FairQueue, Ticket
from app.scheduling.fallback import Fallback
from app.scheduling.forecast import Outlook, Place, forecast
from app.workers.base import Run, RunSpec, SlotInfo
from app.workers.budget import memory_of_machine

BOOT_SECONDS = 10.0
"""What the start of a worker is taken to cost in a forecast: mostly the import of torch."""

_WARM_UP_SECONDS = 1.0

MayRun = Callable[[str, Iterable[Job]], bool]
"""Whether another job of an owner may run beside those that do."""

_SHARE_OF_TIME = 0.1
"""At most this share of the gateway's time is spent on forecasts; until then the last one counts."""


class Entry(msgspec.Struct, eq=False, kw_only=True):
    """A job between submission and end. Its `request` is the job's, or what is drawn in its place;
    it is `drawn_alone` where it may be what killed a worker.

    While it runs, it has a `rank` and a `slot`, where its model was `loaded` before, or not; it
    `shared` the slot when another job ran there as well. Its
    end is published once it has `ended`; `deaths` are those of workers under it.
    """

    job: Job
    card: ModelCard
    request: GenerationRequest
    meter: ProgressMeter
    ticket: Ticket
    fallback: Fallback
    drawn_alone: bool = False
    attempt: int = 1
    deaths: int = 0
    told_position: int = 0
    told_at: float = 0.0
    slot: str = ""
    rank: tuple[int, float] = (0, 0.0)
    loaded: bool = False
    shared: bool = False
    run: Run | None = None
    expiry: asyncio.TimerHandle | None = None
    ended: bool = False
    standing: Standing | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of all that must be here for it: its model, its control network, and its LoRAs."""
        control = self.request.control
        return self.card.id, *([control] if control else []), *self.request.lora_ids

    def blamed(self, error: EaselError) -> str:
        """Which of these it was that failed."""
        return self.request.control if error.param == PARAM else self.card.id


class Estimate(msgspec.Struct, frozen=True):
    """What a job submitted now could expect. Seconds are until its end; bytes are 0 if not known.
    `memory_plan` says how a GPU would hold the model; None where it just does."""

    eta_seconds: float
    eta_seconds_p90: float
    queue_position: int
    model_held: bool
    memory_bytes: int
    memory_plan: str | None


class Schedule:
    """`limit_models` is how many models a slot may hold; 0 is as many as fit."""

    def __init__(
        self,
        queue: FairQueue,
        expectations: Expectations,
        limit_models: int,
        may_run: MayRun = lambda *_: True,
    ) -> None:
        self.expectations = expectations
        self.waiting: dict[str, Entry] = {}
        self.running: dict[str, Entry] = {}
        self._queue = queue
        self._limit_models = limit_models
        self._may_run = may_run
        self._swapped: dict[str, float] = {}
        self._ends: dict[str, float] = {}
        self._stale_at = 0.0

    # -- changes -----------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        self.waiting[entry.job.id] = entry
        self._queue.add(entry.ticket)
        self._stale_at = 0.0

    def remove(self, job_id: str) -> None:
        """The job waits no more; nothing if it does not wait."""
        self._queue.remove(job_id)
        self.waiting.pop(job_id, None)
        self._stale_at = 0.0

    def start(self, entry: Entry, slot: SlotInfo, now: float) -> None:
        """The job runs on the slot from now on."""
        job_id = entry.job.id
        standing = self._waiting(entry, device_kind(slot.device), now)
        entry.rank = rank_beside(standing, self._running_on(slot, now))
        entry.slot = slot.id
        neighbours = [other for other in self.running.values() if other.slot == slot.id]
        for one in (entry, *neighbours):
            one.shared = one.shared or bool(neighbours)
        request, device = entry.request, device_kind(slot.device)
        entry.loaded = entry.card.id in self._room(slot).held
        if not entry.loaded:
            self._swapped[slot.id] = now
        entry.meter.begin(
            self.expectations.phases(request, device, loaded=entry.loaded),
            self.expectations.slowdown_in(request, device),
        )
        self._queue.take(entry.ticket)
        del self.waiting[job_id]
        self.running[job_id] = entry
        self._stale_at = 0.0

    def spec(
        self,
        entry: Entry,
        slot: SlotInfo,
        stall_s: float,
        local: Callable[[str], ModelCard | None],
    ) -> RunSpec:
        """What the slot is to run for a job that has started there."""
        upscaler, control = entry.request.upscaler, entry.request.control
        cap = self.expectations.cap(entry.request, device_kind(slot.device))
        return RunSpec(
            run_id=f"{entry.job.id}.{entry.attempt}",
            attempt=entry.attempt,
            epoch=slot.epoch,
            card=entry.card,
            request=_located(entry.request, local),
            sharing=Sharing(rank=entry.rank, batch=cap),
            upscaler=local(upscaler) if upscaler else None,
            control=local(control) if control else None,
            stall_s=stall_s,
        )

    def end(self, entry: Entry, seconds: float | None) -> None:
        """The job runs no more. `seconds` is what it cost, if that is known."""
        del self.running[entry.job.id]
        if seconds is not None:
            self._queue.settle(entry.ticket, seconds)
            for other in self.waiting.values():
                if other.card.id == entry.card.id:
                    other.standing = None  # more is known about it now
        self._stale_at = 0.0

    def models(self, slots: Mapping[str, SlotInfo]) -> set[str]:
        """Those that a job waits for or is drawn with, or that a slot holds. For any thread."""
        entries = [*list(self.waiting.values()), *list(self.running.values())]
        held = {name for slot in slots.values() for name in (*slot.models, *slot.parked)}
        return held | {name for entry in entries for name in entry.needs}

    # -- who is next -------------------------------------------------------------------------------

    def known(self) -> list[Entry]:
        """All that wait or run."""
        return [*self.waiting.values(), *self.running.values()]

    def first_start(self, outlooks: Mapping[str, Outlook]) -> float:
        """Seconds until the first of those that wait starts."""
        return min((outlooks[job_id].start for job_id in self.waiting), default=1.0)

    def by_class(self, fetching: Iterable[Entry]) -> dict[str, Counter[str]]:
        """How many jobs wait, run, or are `fetching` their model's files; by priority."""
        groups = {
            "waiting": self.waiting.values(),
            "running": self.running.values(),
            "fetching": fetching,
        }
        return {
            doing: Counter(entry.job.terms.priority for entry in entries)
            for doing, entries in groups.items()
        }

    def next_for(self, slot: SlotInfo, slots: Iterable[SlotInfo], now: float) -> Entry | None:
        """The job that is to start on this slot now, if any."""
        if not self.waiting:
            return None
        others = [other for other in slots if other.id != slot.id and other.state == "up"]
        running, room = self._running_on(slot, now), self._room(slot)
        since_swap = now - self._swapped.get(slot.id, -math.inf)
        candidates = []
        jobs = [entry.job for entry in self.running.values() if not entry.ended]
        for ticket in self._queue.order(now, room.held, since_swap=since_swap):
            if not self._may_run(ticket.owner, jobs):
                continue  # as if it were not there: others pass
            standing = self._waiting(self.waiting[ticket.id], device_kind(slot.device), now)
            if ticket.model not in room.held and since_swap < self._queue.hold(ticket):
                standing = msgspec.structs.replace(standing, patience=math.inf)
            if ticket.model in room.held or not self._at_home(standing, others, now):
                candidates.append(standing)
        chosen = next_to_start(candidates, running, room)
        return self.waiting[chosen.id] if chosen else None

    def _at_home(self, job: Standing, others: list[SlotInfo], now: float) -> bool:
        """Whether another slot holds the model and would take the job now."""
        return any(
            job.model in other.models
            and may_start(job, self._running_on(other, now), self._room(other))
            for other in others
        )

    # -- when --------------------------------------------------------------------------------------

    def order(self, slots: Iterable[SlotInfo], now: float) -> list[Entry]:
        """All that wait, the next first."""
        return [self.waiting[one.id] for one in self._queue.order(now, _held_by(slots))]

    def outlooks(
        self,
        slots: Mapping[str, SlotInfo],
        warming: Iterable[str],
        now: float,
        guest: Entry | None = None,
    ) -> dict[str, Outlook]:
        """When each job will start and end, counted from now; of a `guest` as if it were here."""
        infos = list(slots.values())
        tickets = self._queue.order(now, _held_by(infos), guest=guest.ticket if guest else None)
        device = self.device(infos)
        waiting = [
            self._waiting(self.waiting.get(ticket.id) or _given(guest), device, now)
            for ticket in tickets
        ]
        busy = set(warming)
        places = [self._place(slot, now, slot.id in busy) for slot in infos]
        if not places:
            places = [Place(BOOT_SECONDS, Room(1, {}), [])]
        return forecast(
            places, waiting, lambda kind, count: self.expectations.slowdown(kind, device, count)
        )

    def estimate(
        self, guest: Entry, slots: Mapping[str, SlotInfo], warming: Iterable[str], now: float
    ) -> Estimate:
        """What this entry could expect if it were added."""
        held = _held_by(slots.values())
        device = self.device(slots.values())
        outlook = self.outlooks(slots, warming, now, guest)[guest.job.id]
        order = [one.id for one in self._queue.order(now, held, guest=guest.ticket)]
        return Estimate(
            eta_seconds=outlook.end,
            eta_seconds_p90=outlook.end_p90,
            queue_position=order.index(guest.job.id) + 1,
            model_held=guest.card.id in held,
            memory_bytes=self.expectations.memory(guest.card, device),
            memory_plan=_memory_plan(guest, slots.values()),
        )

    def remaining(
        self, entry: Entry, slots: Mapping[str, SlotInfo], warming: Iterable[str], now: float
    ) -> float:
        """Seconds until a running job is done; a forecast is used for a moment before it is renewed."""
        if now >= self._stale_at or entry.job.id not in self._ends:
            outlooks = self.outlooks(slots, warming, now)
            self._ends = {job_id: now + outlook.end for job_id, outlook in outlooks.items()}
            self._stale_at = now + (time.monotonic() - now) / _SHARE_OF_TIME
        return max(0.0, self._ends.get(entry.job.id, now) - now)

    def _place(self, slot: SlotInfo, now: float, warming: bool) -> Place:
        free = 0.0 if slot.state == "up" else BOOT_SECONDS
        if warming:
            free += _WARM_UP_SECONDS
        room = self._room(slot)
        return Place(
            free,
            msgspec.structs.replace(room, capacity=max(1, room.capacity)),
            self._running_on(slot, now),
        )

    # -- how jobs and slots stand ------------------------------------------------------------------

    @staticmethod
    def device(slots: Iterable[SlotInfo]) -> str:
        """The kind of device that forecasts are made for."""
        return next((device_kind(slot.device) for slot in slots), "cpu")

    def _room(self, slot: SlotInfo) -> Room:
        """What the slot has for jobs; those that were called off still take their places."""
        here = [entry for entry in self.running.values() if entry.slot == slot.id]
        held = [*slot.models, *(entry.card.id for entry in here)]
        return Room(
            slot.capacity - sum(entry.ended for entry in here),
            self.expectations.memory_of_held(held, device_kind(slot.device)),
            self._limit_models,
            slot.room,
        )

    def _running_on(self, slot: SlotInfo, now: float) -> list[Standing]:
        device = device_kind(slot.device)
        found = []
        for entry in self.running.values():
            if entry.slot == slot.id and not entry.ended:
                standing = self.expectations.running(
                    entry.job.id, entry.card, entry.request, device, entry.rank, entry.meter, now
                )
                standing.alone = entry.drawn_alone
                found.append(standing)
        return found

    def _waiting(self, entry: Entry, device: str, now: float) -> Standing:
        rank = self._queue.rank(entry.ticket, now)
        if entry.standing is None:
            entry.standing = self.expectations.waiting(
                entry.job.id, entry.card, entry.request, device, rank
            )
            entry.standing.alone = entry.drawn_alone
        entry.standing.rank = rank
        entry.standing.patience = self._queue.patience(entry.ticket, now)
        return entry.standing


def _held_by(slots: Iterable[SlotInfo]) -> set[str]:
    return {model for slot in slots for model in slot.models}


def _memory_plan(guest: Entry, slots: Iterable[SlotInfo]) -> str | None:
    """How the first device would hold the model."""
    for slot in slots:
        return plan_told(guest.card, slot.device, Memory(slot.memory, memory_of_machine()))
    return None


def _given(guest: Entry | None) -> Entry:
    assert guest is not None  # noqa: S101 - who is ordered either waits or is the guest
    return guest


def _located(
    request: GenerationRequest, local: Callable[[str], ModelCard | None]
) -> GenerationRequest:
    """The request as a worker needs it: with the files of its LoRAs."""
    if not request.loras:
        return request
    cards = [(one, local(lora_id(one.name))) for one in request.loras]
    found = tuple(
        msgspec.structs.replace(one, file=card.source if card else "") for one, card in cards
    )
    return msgspec.structs.replace(request, loras=found)
