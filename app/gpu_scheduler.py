"""Decides which waiting job goes to which worker, and when; and sees each one to its end.

What you can rely on: a submitted job gets exactly one terminal event; a job whose worker died is
drawn once more, by itself first in line, and fails after the second death; a cancelled job ends at
once for everybody who follows it, and its worker is free after the step that it is in.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from app.domain.errors import (
    Cancelled,
    EaselError,
    QueueFull,
    ShuttingDown,
    TimedOut,
    WorkerCrashed,
)
from app.domain.events import (
    EngineEvent,
    Failed,
    ImageFinished,
    ImageReady,
    JobCancelled,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.progress import ProgressMeter
from app.domain.request import Arguments, GenerationRequest
from app.job_board import JobBoard
from app.phase_times import PhaseTimes
from app.store.image_files import ImageFiles, StoredImage
from app.workers.base import Run, RunSpec, SlotInfo, WorkerLost, WorkerPool

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
_BOOT_SECONDS = 10.0
"""What the start of a worker is taken to cost in a forecast: mostly the import of torch."""
_REFRESH_SECONDS = 2.0
"""How often waiting jobs are told how long it will be."""


class SchedulerLimits(msgspec.Struct, frozen=True):
    """Times are seconds. See config/easel.toml."""

    max_queue: int
    aging_seconds: float
    generation_timeout: float
    stall_seconds: float


class _Entry(msgspec.Struct, eq=False):
    """A job between submission and end. `since` is monotonic."""

    job: Job
    card: ModelCard
    meter: ProgressMeter
    since: float
    attempt: int = 1
    told_position: int = 0
    run: Run | None = None
    slot: str = ""


class GpuScheduler:
    """One queue in front of all slots of a pool. `new_id` makes ids for pictures."""

    def __init__(
        self,
        pool: WorkerPool,
        board: JobBoard,
        times: PhaseTimes,
        images: ImageFiles,
        limits: SchedulerLimits,
        *,
        preload: Iterable[ModelCard] = (),
        new_id: Callable[[], str],
    ) -> None:
        self._pool = pool
        self._board = board
        self._times = times
        self._images = images
        self._limits = limits
        self._preload = tuple(preload)
        self._new_id = new_id
        self._queue: list[_Entry] = []
        self._running: dict[str, _Entry] = {}
        self._warm: set[tuple[str, int]] = set()
        self._warming: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._pool.start()
        self._spawn(self._watch())
        self._spawn(self._refresh_now_and_then())

    async def close(self, drain_s: float = 0.0) -> None:
        """Take no more jobs, give running ones `drain_s` seconds, and end the rest as failed."""
        if self._closing:
            return
        self._closing = True
        deadline = time.monotonic() + drain_s
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        ended = ShuttingDown("The server is shutting down.")
        for entry in [*self._queue, *self._running.values()]:
            self._board.publish(entry.job.id, Failed(ended.code, ended.message))
        self._queue.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()
        self._times.save()

    @property
    def ready(self) -> bool:
        """Whether some worker could start on a picture now, its preloaded models in place."""
        return not self._closing and any(
            slot.state == "up" and (slot.id, slot.epoch) in self._warm
            for slot in self._pool.slots().values()
        )

    def slots(self) -> list[SlotInfo]:
        return list(self._pool.slots().values())

    def waiting(self) -> int:
        return len(self._queue)

    # -- jobs --------------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Whether one more job would be taken. Raises QueueFull, ShuttingDown."""
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        if len(self._queue) >= self._limits.max_queue:
            wait = min(self._lanes(), default=(_BOOT_SECONDS, frozenset()))[0]
            seconds = min(59, max(1, math.ceil(wait)))
            raise QueueFull(
                f"{len(self._queue)} jobs are waiting, as many as may. Try again in {seconds} s.",
                retry_after=seconds,
            )

    def submit(self, job: Job, card: ModelCard) -> None:
        """Queue a job, after `check_room`."""
        now = time.monotonic()
        self._queue.append(_Entry(job, card, ProgressMeter(now), now))
        self._refresh()
        self._dispatch()

    async def cancel(self, job_id: str) -> None:
        """End a job. One that has ended already stays as it is."""
        self._board.publish(job_id, JobCancelled())
        self._queue = [entry for entry in self._queue if entry.job.id != job_id]
        running = self._running.get(job_id)
        if running is not None and running.run is not None:
            await running.run.cancel()
        self._refresh()

    def forecast(self, request: GenerationRequest, card: ModelCard) -> float:
        """Seconds until a job submitted now would be finished."""
        return self._forecasts([*((e.job.request, e.card) for e in self._queue), (request, card)])[
            -1
        ]

    # -- who is next -------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        for slot in self._pool.slots().values():
            while self._queue and not self._closing and self._has_room(slot):
                entry = self._choose(slot)
                self._queue.remove(entry)
                self._running[entry.job.id] = entry
                entry.slot = slot.id
                self._spawn(self._draw(entry, slot))
        self._refresh()

    def _has_room(self, slot: SlotInfo) -> bool:
        used = sum(entry.slot == slot.id for entry in self._running.values())
        return slot.state == "up" and used + self._warming[slot.id] < slot.capacity

    def _choose(self, slot: SlotInfo) -> _Entry:
        """The oldest job whose model the slot holds, unless the oldest of all has waited enough."""
        oldest = self._queue[0]
        if time.monotonic() - oldest.since >= self._limits.aging_seconds:
            return oldest
        return next((entry for entry in self._queue if entry.card.id in slot.models), oldest)

    def _lanes(self) -> list[tuple[float, frozenset[str]]]:
        """For each place where a job can run: seconds until it is free, and the models held there."""
        now = time.time()
        lanes: list[tuple[float, frozenset[str]]] = []
        for slot in self._pool.slots().values():
            rest = sorted(e.job.eta_at(now) for e in self._running.values() if e.slot == slot.id)
            start = 0.0 if slot.state == "up" else _BOOT_SECONDS
            rest += [1.0] * self._warming[slot.id]
            rest = [start] * max(0, slot.capacity - len(rest)) + rest
            lanes += [(seconds, frozenset(slot.models)) for seconds in rest]
        return lanes

    def _forecasts(self, wishes: list[tuple[GenerationRequest, ModelCard]]) -> list[float]:
        """Seconds until the end of each wish, when they are taken in this order."""
        device = self._device_kind()
        lanes = self._lanes() or [(_BOOT_SECONDS, frozenset())]
        ends = []
        for request, card in wishes:
            lanes.sort(key=lambda lane: lane[0])
            free, held = lanes[0]
            expected = self._times.expect(request, device, loaded=card.id in held)
            end = free + sum(expected.values())
            lanes[0] = (end, held | {card.id})
            ends.append(end)
        return ends

    def _device_kind(self) -> str:
        return next((_kind(slot.device) for slot in self._pool.slots().values()), "cpu")

    def _refresh(self, *, all_of_them: bool = False) -> None:
        """Tell waiting jobs their place, when it has changed or it is time to."""
        ends = self._forecasts([(entry.job.request, entry.card) for entry in self._queue])
        up = any(slot.state == "up" for slot in self._pool.slots().values())
        reason = "waiting_for_worker" if up else "worker_starting"
        for position, (entry, end) in enumerate(zip(self._queue, ends, strict=True), start=1):
            eta = entry.meter.wait(end)
            if all_of_them or entry.told_position != position:
                entry.told_position = position
                self._board.publish(entry.job.id, Queued(position, eta, reason))

    async def _refresh_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self._refresh(all_of_them=True)
            self._dispatch()
            self._times.save()

    # -- seeing a job through ----------------------------------------------------------------------

    async def _draw(self, entry: _Entry, slot: SlotInfo) -> None:
        job, request = entry.job, entry.job.request
        loaded = entry.card.id in slot.models
        device = _kind(slot.device)
        entry.meter.begin(self._times.expect(request, device, loaded=loaded))
        self._board.publish(job.id, Started(slot.id, entry.attempt))
        run = entry.run = self._pool.run(slot.id, self._spec(job.id, entry, slot))
        retry = False
        try:
            async with asyncio.timeout(self._limits.generation_timeout):
                async for event in run:
                    await self._observe(entry, event)
            self._board.publish(job.id, entry.meter.finish(time.monotonic()))
            self._times.learn(request, device, entry.meter.measured, loaded=loaded)
            self._board.publish(job.id, Succeeded())
        except Cancelled:
            self._board.publish(job.id, JobCancelled())
        except TimeoutError:
            limit = self._limits.generation_timeout
            self._fail(job, TimedOut(f"Drawing took longer than the {limit:g} s allowed."))
        except EaselError as error:
            self._fail(job, error)
        except WorkerLost as loss:
            retry = entry.attempt < MAX_ATTEMPTS and not job.ended
            _log.warning("job %s lost its worker in attempt %d: %s", job.id, entry.attempt, loss)
            if not retry:
                self._fail(
                    job, WorkerCrashed(f"The worker died {MAX_ATTEMPTS} times over this job.")
                )
        except Exception:
            _log.exception("job %s", job.id)
            self._fail(job, EaselError("The server made a mistake; its log says more."))
        finally:
            await run.aclose()
            del self._running[job.id]
            if retry:
                self._again(entry)
            if not self._closing:
                self._dispatch()

    def _spec(self, run_id: str, entry: _Entry, slot: SlotInfo) -> RunSpec:
        return RunSpec(
            run_id=f"{run_id}.{entry.attempt}",
            attempt=entry.attempt,
            epoch=slot.epoch,
            card=entry.card,
            request=entry.job.request,
            stall_s=self._limits.stall_seconds,
        )

    async def _observe(self, entry: _Entry, event: EngineEvent) -> None:
        if isinstance(event, ImageFinished):
            image_id = self._new_id()
            await self._images.put(image_id, StoredImage(event.image, event.media_type))
            self._board.publish(
                entry.job.id, ImageReady(event.index, image_id, event.seed, event.prompt_tokens)
            )
        else:
            self._board.publish(entry.job.id, entry.meter.observe(event, time.monotonic()))

    def _fail(self, job: Job, error: EaselError) -> None:
        self._board.publish(job.id, Failed(error.code, error.message, error.param))

    def _again(self, entry: _Entry) -> None:
        """A second attempt, first in line, with a fresh meter: its progress starts over."""
        self._queue.insert(
            0,
            _Entry(
                entry.job, entry.card, ProgressMeter(entry.since), entry.since, entry.attempt + 1
            ),
        )

    # -- workers -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for event in self._pool.watch():
            if event.kind == "up":
                self._spawn(self._warm_up(self._pool.slots()[event.slot]))
            self._dispatch()

    async def _warm_up(self, slot: SlotInfo) -> None:
        """Load what is to be preloaded, and draw one picture whose kind was never measured here."""
        self._warming[slot.id] += 1
        try:
            for card in self._preload:
                await self._pool.call(slot.id, "load", card)
                wish = card.resolve(Arguments(prompt="a warm-up"), draw_seed=lambda: 0)
                if not self._times.knows(wish, _kind(slot.device)):
                    first = msgspec.structs.replace(wish, num_inference_steps=1)
                    for request in (first, wish):  # the first run of all pays for lazy set-up
                        await self._rehearse(card, request, slot)
            self._warm.add((slot.id, slot.epoch))
        except (EaselError, WorkerLost) as error:
            _log.error("worker %s cannot warm up: %s", slot.id, error)
        finally:
            self._warming[slot.id] -= 1
            self._dispatch()

    async def _rehearse(self, card: ModelCard, request: GenerationRequest, slot: SlotInfo) -> None:
        meter = ProgressMeter(time.monotonic())
        spec = RunSpec(f"warm-up.{self._new_id()}", 1, slot.epoch, card, request)
        async for event in self._pool.run(slot.id, spec):
            if not isinstance(event, ImageFinished):
                meter.observe(event, time.monotonic())
        meter.finish(time.monotonic())
        if request.num_inference_steps > 1:
            self._times.learn(request, _kind(slot.device), meter.measured, loaded=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kind(device: str) -> str:
    """Times are learnt per kind of device: all "cuda:N" of a machine are taken as equal."""
    return device.partition(":")[0]
