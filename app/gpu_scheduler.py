"""Starts waiting jobs on workers when their turn has come; and sees each one to its end.

What you can rely on: a submitted job gets exactly one terminal event; a job whose worker died is
drawn once more, first in line and with no other job beside it, and fails after the second death; a
cancelled job ends at once for everybody who follows it, and its worker is free after the step that it
is in; a job that has a deadline ends by then, whatever it is doing.

The order of the queue is told in `fair_queue`, what may run at the same time in `admission`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from app.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    EaselError,
    ShuttingDown,
    TimedOut,
    WorkerCrashed,
)
from app.domain.events import (
    EngineEvent,
    Expired,
    Failed,
    ImageFinished,
    ImageReady,
    JobCancelled,
    JobEvent,
    Started,
    StepFinished,
    Succeeded,
    Waited,
)
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.progress import ProgressMeter
from app.domain.request import GenerationRequest, Terms
from app.job_board import JobBoard
from app.model_files.shelf import ModelShelf
from app.scheduling.arrivals import Arrivals
from app.scheduling.expectations import Expectations, device_kind
from app.scheduling.fair_queue import FairQueue, Ticket
from app.scheduling.fallback import Choice, Fallback
from app.scheduling.forecast import Outlook
from app.scheduling.limits import SchedulerLimits
from app.scheduling.onlooker import Onlooker
from app.scheduling.queue_news import QueueNews
from app.scheduling.room import QueueRoom
from app.scheduling.run_clock import RunClock
from app.scheduling.schedule import Entry, Estimate, MayRun, Schedule
from app.scheduling.warm_up import WarmUps
from app.store.pictures import PictureStore, StoredImage
from app.workers.base import SlotInfo, WorkerLost, WorkerPool

_log = logging.getLogger(__name__)

MAX_DEATHS = 2
_REFRESH_SECONDS = 2.0
"""How often waiting jobs are told how long it will be."""


class GpuScheduler:
    """One queue in front of all slots of a pool. `new_id` makes ids for pictures, `spend` is told what
    a run cost: the owner, the job, and seconds of a device. Once it is `closing`, `hurried` may be set:
    running jobs then get no more time."""

    def __init__(
        self,
        pool: WorkerPool,
        board: JobBoard,
        expectations: Expectations,
        pictures: PictureStore,
        shelf: ModelShelf,
        limits: SchedulerLimits,
        *,
        preload: Iterable[ModelCard] = (),
        new_id: Callable[[], str],
        onlooker: Onlooker | None = None,
        spend: Callable[[str, str, float], None] = lambda *_: None,
        may_run: MayRun = lambda *_: True,
    ) -> None:
        self._pool = pool
        self._board = board
        self._expectations = expectations
        self._pictures = pictures
        self._shelf = shelf
        self._limits = limits
        self._new_id = new_id
        self._onlooker = onlooker or Onlooker()
        self._spend = spend
        queue = FairQueue(
            limits.owner_weights,
            aging_seconds=limits.aging_seconds,
            starvation_seconds=limits.starvation_seconds,
        )
        self._schedule = Schedule(queue, expectations, limits.max_models, may_run)
        self._warm_ups = WarmUps(pool, expectations, preload, shelf.local, self._dispatch)
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = QueueNews(self._schedule, board, pool.slots, self._warm_ups.going)
        self._arrivals = Arrivals(
            shelf, board, self._outlooks, admit=self._admit, fail=self._cannot_come
        )
        shelf.busy = lambda: self._schedule.models(pool.slots()) | self._arrivals.models()
        self._room = QueueRoom(
            limits.max_queue, self.waiting, lambda: self._schedule.first_start(self._outlooks())
        )
        self.closing = self.hurried = False

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._pool.start()
        self._spawn(self._watch())
        self._spawn(self._arrivals.run())
        self._spawn(self._tell_now_and_then())

    async def close(self, drain_s: float = 0.0) -> None:
        """Take no more jobs, and give running ones `drain_s` seconds.

        The rest end as failed, but for those that may go on without anybody waiting: they stay
        unfinished, for the next process.
        """
        if self.closing:
            return
        self.closing = True
        deadline = time.monotonic() + drain_s
        while self._schedule.running and time.monotonic() < deadline and not self.hurried:
            await asyncio.sleep(0.05)
        self._news.close()
        for entry in [*self._schedule.known(), *self._arrivals.entries()]:
            if entry.job.grace == 0.0:
                self._fail(entry, ShuttingDown("The server is shutting down."))
            entry.ended = True
        for job_id in list(self._schedule.waiting):
            self._schedule.remove(job_id)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()

    @property
    def ready(self) -> bool:
        """Whether some worker could start on a picture now, its preloaded models in place."""
        return not self.closing and any(
            slot.state == "up" and self._warm_ups.done(slot) for slot in self._pool.slots().values()
        )

    def slots(self) -> list[SlotInfo]:
        return list(self._pool.slots().values())

    def waiting(self) -> int:
        return len(self._schedule.waiting) + len(self._arrivals)

    def by_class(self) -> Mapping[str, Mapping[str, int]]:
        """How many unfinished jobs there are, by what they do and by priority."""
        return self._schedule.by_class(self._arrivals.entries())

    # -- jobs --------------------------------------------------------------------------------------

    def room(self) -> AbstractContextManager[None]:
        """A place in the queue, held while the job is made. Raises QueueFull, ShuttingDown."""
        if self.closing:
            raise ShuttingDown("The server is shutting down.")
        return self._room.hold()

    def _outlooks(self, guest: Entry | None = None) -> dict[str, Outlook]:
        now, warming = time.monotonic(), self._warm_ups.going()
        return self._schedule.outlooks(self._pool.slots(), warming, now, guest)

    def submit(self, job: Job, card: ModelCard, instead: Iterable[Choice] = ()) -> None:
        """Queue a job that is on the board, new or left by an earlier process; `instead` is drawn when
        its model cannot be loaded. Raises ShuttingDown; then the job has ended.
        """
        age = max(0.0, time.time() - job.created)
        entry = self._entry(job, (card, job.request), time.monotonic() - age)
        entry.fallback.choices.extend(instead)
        if self.closing:
            late = ShuttingDown("The server is shutting down.")
            self._fail(entry, late)
            raise late
        if (deadline := job.terms.deadline) is not None:
            loop = asyncio.get_running_loop()
            entry.expiry = loop.call_later(max(0.0, deadline - age), self._expire, job)
        self._arrivals.add(entry)

    def _admit(self, entry: Entry) -> None:
        """The files of its model are here: the job is queued."""
        self._schedule.add(entry)
        self._news.tell(at_once=True)
        self._dispatch()

    def _cannot_come(self, entry: Entry, error: EaselError) -> None:
        """Its model's files are not here and will not come."""
        if (again := self._instead(entry, error, loading=True)) is not None:
            self._arrivals.add(self._entry(entry.job, again, entry.ticket.since, entry))

    def _entry(self, job: Job, choice: Choice, since: float, before: Entry | None = None) -> Entry:
        """An attempt at a job, after the one `before`."""
        terms, (card, request) = job.terms, choice
        deaths = before.deaths if before else 0
        device = self._schedule.device(self._pool.slots().values())
        card = self._shelf.local(card.id) or card
        self._expectations.memory(card, device)
        ticket = Ticket(
            id=job.id,
            owner=job.owner,
            model=card.id,
            since=since,
            seconds=self._expectations.seconds(request, device),
            load=self._expectations.load(request, device),
            background=terms.priority == "background",
            deadline=None if terms.deadline is None else since + terms.deadline,
            again=deaths > 0,
        )
        return Entry(
            job=job,
            card=card,
            request=request,
            meter=ProgressMeter(since),
            ticket=ticket,
            fallback=before.fallback if before else Fallback([]),
            attempt=before.attempt + (before.run is not None) if before else job.attempt + 1,
            deaths=deaths,
            drawn_alone=deaths > 0 or (before.drawn_alone if before else job.attempt > 0),
            expiry=before.expiry if before else None,
        )

    async def cancel(self, job_id: str) -> None:
        """End a job. One that has ended already stays as it is."""
        await self._call_off(job_id, JobCancelled())

    def _expire(self, job: Job) -> None:
        late = f"The job was not done {job.terms.deadline:g} s after it came."
        self._spawn(self._call_off(job.id, Expired(DeadlineExceeded.code, late)))

    async def _call_off(self, job_id: str, end: JobEvent) -> None:
        entry = self._schedule.waiting.get(job_id) or self._schedule.running.get(job_id)
        entry = entry or self._arrivals.drop(job_id)
        if entry is None:
            return
        self._end(entry, end)
        self._schedule.remove(job_id)
        if entry.run is not None:
            await entry.run.cancel()
        self._dispatch()

    def estimate(
        self, request: GenerationRequest, card: ModelCard, *, owner: str, terms: Terms
    ) -> Estimate:
        """What a job submitted now could expect."""
        now, guest = time.monotonic(), Job.imagined(request, owner, terms, time.time())
        entry, slots = self._entry(guest, (card, request), now), self._pool.slots()
        return self._schedule.estimate(entry, slots, self._warm_ups.going(), now)

    # -- who is next -------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        now = time.monotonic()
        for slot in self._pool.slots().values():
            if self.closing or slot.state != "up" or not self._warm_ups.takes_jobs(slot):
                continue
            while entry := self._schedule.next_for(slot, self._pool.slots().values(), now):
                self._schedule.start(entry, slot, now)
                for name in entry.needs:
                    self._shelf.used(name)
                self._spawn(self._draw(entry, slot))
        self._news.tell()

    async def _tell_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self._dispatch()
            self._news.tell(at_once=True, all_of_them=True)

    # -- seeing a job through ----------------------------------------------------------------------

    async def _draw(self, entry: Entry, slot: SlotInfo) -> None:
        job, request = entry.job, entry.request
        device = device_kind(slot.device)
        self._board.publish(job.id, Started(slot.id, entry.attempt, request.model))
        spec = self._schedule.spec(entry, slot, self._limits.stall_seconds, self._shelf.local)
        run = entry.run = self._pool.run(slot.id, spec)
        limit = min(job.terms.timeout or math.inf, self._limits.generation_timeout)
        again, seconds = None, None
        try:
            async with asyncio.timeout(limit) as clock:
                run_clock = RunClock(clock)
                if entry.ended:  # called off before its run existed
                    await run.cancel()
                async for event in run:
                    run_clock.heard(event)
                    await self._observe(entry, event)
            self._board.publish(job.id, entry.meter.finish(time.monotonic()))
            measured = entry.meter.measured
            self._expectations.learn(
                request, device, measured, loaded=entry.loaded, shared=entry.shared
            )
            self._onlooker.drew(request.model, measured)
            seconds = sum(measured.values()) - measured.get("loading_model", 0.0)
            self._charge(entry)
            for name in entry.needs:
                self._shelf.note(name, None)
            self._end(entry, Succeeded())
        except Cancelled:
            self._end(entry, JobCancelled())
        except TimeoutError:
            self._fail(entry, TimedOut(f"Drawing took longer than the {limit:g} s allowed."))
        except EaselError as error:
            self._shelf.note(entry.blamed(error), error)
            again = self._instead(entry, error, loading=entry.meter.loading)
        except WorkerLost as loss:
            entry.deaths += 1
            _log.warning("job %s lost its worker in attempt %d: %s", job.id, entry.attempt, loss)
            if entry.deaths < MAX_DEATHS and not entry.ended:
                again = entry.card, request
            else:
                crashed = WorkerCrashed(f"The worker died {MAX_DEATHS} times over this job.")
                self._fail(entry, crashed)
        except Exception:
            _log.exception("job %s", job.id)
            self._fail(entry, EaselError("The server made a mistake; its log says more."))
        finally:
            self._charge(entry)
            await run.aclose()
            self._schedule.end(entry, 0.0 if again else seconds)
            if again:  # with a fresh meter: its progress starts over
                self._arrivals.add(self._entry(job, again, entry.ticket.since, entry))
            if not self.closing:
                self._dispatch()

    def _charge(self, entry: Entry) -> None:
        self._spend(entry.job.owner, entry.job.id, entry.meter.charge(time.monotonic()))

    def _instead(self, entry: Entry, error: EaselError, *, loading: bool) -> Choice | None:
        """What is to be drawn after a run has failed; nothing, and the job has failed as well."""
        then = entry.fallback.after(error, loading=loading and not entry.ended)
        if isinstance(then, EaselError):
            self._fail(entry, then)
        return None if isinstance(then, EaselError) else then

    async def _observe(self, entry: Entry, event: EngineEvent) -> None:
        if isinstance(event, Waited):
            return
        if isinstance(event, ImageFinished):
            image_id = self._new_id()
            image = StoredImage(event.image, event.media_type)
            picture = await self._pictures.put(
                image_id, event.index, event.seed, image, event.thumbnail
            )
            ready = ImageReady(event.index, image_id, event.seed, event.prompt_tokens)
            self._board.publish(entry.job.id, ready, picture)
            return
        if isinstance(event, StepFinished):
            self._onlooker.stepped(entry.request.model, event.batch)
        now = time.monotonic()

        def remaining() -> float:
            slots = self._pool.slots()
            return self._schedule.remaining(entry, slots, self._warm_ups.going(), now)

        steps_done = entry.meter.finishing
        self._board.publish(entry.job.id, entry.meter.observe(event, now, remaining))
        if entry.meter.finishing and not steps_done:
            self._dispatch()  # the next one may step while this one is decoded

    def _fail(self, entry: Entry, error: EaselError) -> None:
        again = getattr(error, "retry_after", None)
        self._end(entry, Failed(error.code, error.message, error.param, again))

    def _end(self, entry: Entry, event: JobEvent) -> None:
        if entry.ended:
            return
        if entry.expiry is not None:
            entry.expiry.cancel()
        entry.ended = True
        self._board.publish(entry.job.id, event)

    # -- workers -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for event in self._pool.watch():
            self._onlooker.changed(event, self._pool.slots()[event.slot])
            if event.kind == "up":
                self._spawn(self._warm_ups.begin(self._pool.slots()[event.slot]))
            self._dispatch()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
