"""Everything that a front door may ask for."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec

from app.archive import Archive
from app.attendance import FOREVER, Attendance
from app.catalogue import Catalogue
from app.domain.control import Controls, with_control
from app.domain.errors import (
    InvalidRequest,
    ModelUnavailable,
    NotFound,
    WorkerCrashed,
)
from app.domain.events import Failed, NumberedEvent
from app.domain.fallback import chain
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.request import AUTO, SEED_LIMIT, Arguments, GenerationRequest, replay
from app.domain.style import Styles
from app.domain.upscaling import Upscalers, enlarging, with_upscaling
from app.gpu_scheduler import GpuScheduler
from app.job_board import JobBoard, Observer
from app.job_feed import JobFeed
from app.model_files.loras import LoraShelf
from app.model_files.shelf import ModelShelf
from app.presets import Presets
from app.recent_requests import Attempt, RecentRequests
from app.reception import Reception
from app.scheduling.expectations import device_kind
from app.scheduling.loading import Loader
from app.scheduling.schedule import Estimate
from app.store.history import Wanted
from app.store.pictures import StoredImage
from app.workers.base import SlotInfo

_MAX_STARTS = 20
"""A job that was begun so often and never ended may be what ends the server."""

_REMEMBERED = 2000
"""Requests of earlier processes, of each door, that are recognised when they are repeated."""


class ImageService:
    """Submit, follow, wait, cancel; models, jobs and pictures.

    What you can rely on: a request that cannot be drawn is refused before a job exists, with an
    `InvalidRequest` that names the field; a job that was given out is stored, and reaches one of its
    ends, if need be in another life of the server.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: GpuScheduler,
        board: JobBoard,
        archive: Archive,
        presets: Presets,
        shelf: ModelShelf,
        loras: LoraShelf,
        *,
        check_webhook: Callable[[str], None],
        loader: Loader,
        reception: Reception,
        metadata: bool = True,
    ) -> None:
        self.catalogue = catalogue
        self._scheduler = scheduler
        self._board = board
        self.archive = archive
        self._presets = presets
        self.shelf = shelf
        self.loras = loras
        self._check_webhook = check_webhook
        self._loader = loader
        self.reception = reception
        self._metadata = metadata
        self._attendance = Attendance(scheduler.cancel)
        self._recent = RecentRequests()
        self._one_by_one = asyncio.Lock()
        self._feed = JobFeed(board)

    # -- models ------------------------------------------------------------------------------------

    @property
    def styles(self) -> Styles:
        return self.catalogue.styles

    @property
    def upscalers(self) -> Upscalers:
        return self.catalogue.upscalers

    @property
    def controls(self) -> Controls:
        return self.catalogue.controls

    def models(self) -> list[ModelCard]:
        return list(self.catalogue.cards.values())

    def model(self, name: str | None, family: str | None = None) -> ModelCard:
        """The card that a client means by `name`: see `Catalogue.model`."""
        return self.catalogue.model(name, family, here=lambda model: self.shelf.state(model).here)

    async def load(self, card: ModelCard) -> None:
        """Have a worker hold the model. Raises Unavailable, TimedOut, and what `Engine.load` raises."""
        await self._loader.bring(self._here(card))

    async def unload(self, card: ModelCard) -> None:
        """Have all workers let go of the model, each as soon as nobody uses it."""
        await self._loader.let_go([card])

    async def renew(self, catalogue: Catalogue) -> None:
        """Offer this from now on. Accepted jobs are drawn as they were accepted; a model whose card has
        changed is loaded anew for those that come after them."""
        known = self.catalogue.all
        await asyncio.to_thread(self.shelf.renew, catalogue.all)
        self.catalogue = catalogue
        changed = [card for name, card in known.items() if catalogue.all.get(name) != card]
        await self._loader.let_go(changed)

    # -- jobs --------------------------------------------------------------------------------------

    def resolve(self, given: Arguments, family: str | None = None) -> GenerationRequest:
        """The request that a submission would draw. An upscaler as model enlarges the given picture.

        Raises InvalidRequest.
        """
        upscaler = self.upscalers.get(given.model or "")
        if given.image is not None and upscaler is not None:
            return enlarging(upscaler, given, metadata=self._metadata)
        if given.model == AUTO and not self.catalogue.knows(AUTO):
            return self._chosen(given, family)
        return self._resolved(self.model(given.model, family), given)

    def _chosen(self, given: Arguments, family: str | None) -> GenerationRequest:
        """The request to the model that will have it drawn soonest: of those that are here, can take it
        and fit somewhere, one that is held, or else the default model, or else any."""
        given = msgspec.structs.replace(given, requested_model=AUTO)
        default, held = self.model(None, family), self._loader.held()
        cards = [card for card in self.models() if family in (None, card.family)]
        for card in sorted(cards, key=lambda one: (one.id not in held, one is not default)):
            if self.shelf.local(card.id) is not None and self._loader.fits(self._here(card)):
                with suppress(InvalidRequest):
                    return self._resolved(card, given)
        return self._resolved(default, given)

    def _resolved(self, card: ModelCard, given: Arguments) -> GenerationRequest:
        given = self.styles.onto(given, card.defaults.negative_prompt)
        request = card.resolve(
            given, draw_seed=lambda: secrets.randbelow(SEED_LIMIT), metadata=self._metadata
        )
        self.loras.check(request.loras, card)
        technique = self._presets.technique(self._here(card), self._device, request.preset)
        request = msgspec.structs.replace(request, technique=technique)
        request = with_control(request, given, self.controls)
        return with_upscaling(request, given, self.upscalers)

    def unused(self, given: Arguments, request: GenerationRequest) -> list[str]:
        """Names of fields that were given and that the model of `request` has no use for."""
        return self.catalogue.all[request.model].unused(given, request)

    def presets(self, card: ModelCard) -> dict[str, dict[str, Any]]:
        """The presets that the model has here, and what was measured of each."""
        return self._presets.shown(self._here(card), self._device)

    def _here(self, card: ModelCard) -> ModelCard:
        """The card with paths, as soon as its files are here."""
        return self.shelf.local(card.id) or card

    def preset_of(self, request: GenerationRequest) -> dict[str, Any]:
        """How a request is drawn: its preset, the technique, and what was measured of that."""
        figures = self.presets(self.catalogue.all[request.model]).get(request.preset, {})
        if figures.get("technique") != request.technique:  # calibrated anew meanwhile
            figures = {}
        return {"preset": request.preset, **figures, "technique": request.technique}

    @property
    def _device(self) -> str:
        return next((device_kind(slot.device) for slot in self._scheduler.slots()), "cpu")

    async def submit(
        self,
        given: Arguments,
        *,
        owner: str,
        door: str,
        family: str | None = None,
        grace: float = 0.0,
        attempt: Attempt | None = None,
    ) -> Job:
        """Take a job; it is stored when this returns, and will be drawn whatever happens.

        When all who attend it have left, it goes on for `grace` seconds.

        Raises InvalidRequest, TryLater, ShuttingDown, StoreUnavailable, StorageFull; then no job
        goes on.
        """
        request = self.resolve(given, family)
        if given.webhook is not None:
            self._check_webhook(given.webhook)
        self.archive.check_room()
        with self._scheduler.room(), self.reception.place(owner, request):
            job = await self._board.open(
                request,
                owner=owner,
                door=door,
                terms=given.terms,
                grace=grace,
                digest=attempt.digest if attempt else "",
                key=attempt.key if attempt else None,
                webhook=given.webhook,
                instead=self._instead(given, request),
            )
        self._attendance.grant(job.id, grace)
        self._queue(job)
        return job

    def _instead(
        self, given: Arguments, request: GenerationRequest
    ) -> tuple[GenerationRequest, ...]:
        """The same wish to each model that draws when the request's own cannot be loaded, as far as
        that one can take it; without pictures."""
        wishes: list[GenerationRequest] = []
        wish = msgspec.structs.replace(given, seed=request.seed, requested_model=request.asked)
        for name in chain(self.catalogue.all, request.model):
            with suppress(InvalidRequest):
                other = self._resolved(self.catalogue.cards[name], wish)
                wishes.append(other.without_pictures())
        return tuple(wishes)

    def _queue(self, job: Job) -> None:
        """Hand a job to the scheduler, with what is left to draw in its place."""
        models = [request.model for request in job.instead]
        tried = models.index(job.request.model) + 1 if job.request.model in models else 0
        instead = [
            (self.catalogue.cards[request.model], request.with_pictures_of(job.request))
            for request in job.instead[tried:]
            if request.model in self.catalogue.cards
        ]
        self._scheduler.submit(job, self.catalogue.all[job.request.model], instead)

    async def submit_once(
        self,
        attempt: Attempt,
        given: Arguments,
        *,
        door: str,
        grace: float = 0.0,
        whatever_became: bool = False,
    ) -> tuple[Job, bool]:
        """The job of the request that this one repeats, and True; or else a new job, and False.

        One that failed or was cancelled is drawn anew, unless it counts `whatever_became` of it: then
        what carries the request repeats it. Raises what `submit` raises, and KeyReused.
        """
        if not attempt.is_retry and attempt.key is None:
            return await self._submit_new(attempt, given, door, grace), False
        async with self._one_by_one:  # the one that is repeated may still be on its way in
            known = self._recent.find(attempt)
            if known is not None:
                with suppress(NotFound):  # forgotten meanwhile
                    job = await self._board.get(known)
                    if whatever_became or job.status in ("queued", "running", "succeeded"):
                        return job, True
            return await self._submit_new(attempt, given, door, grace), False

    async def _submit_new(self, attempt: Attempt, given: Arguments, door: str, grace: float) -> Job:
        job = await self.submit(given, owner=attempt.owner, door=door, grace=grace, attempt=attempt)
        self._recent.remember(attempt, job.id)
        return job

    async def resume(self) -> None:
        """Take up the jobs that an earlier process has left, and know again who asked for what.

        One that was only for somebody who waited for it is cancelled. Raises StoreUnavailable.
        """
        await self._remember_requests()
        for job in await self._board.unfinished():
            wish = job.request
            needed = {wish.model, wish.upscaler or wish.model, wish.control or wish.model}
            known = needed <= self.catalogue.all.keys()
            if not known or not all(map(self.shelf.knows, wish.lora_ids)):
                gone = ModelUnavailable("What this job is drawn with is not here any more.")
                self._board.publish(job.id, Failed(gone.code, gone.message))
            elif job.attempt >= _MAX_STARTS:
                died = WorkerCrashed(f"The server ended {job.attempt} times over this job.")
                self._board.publish(job.id, Failed(died.code, died.message))
            else:
                self._attendance.grant(job.id, job.grace)
                self._queue(job)
                self.attend(job)
                await self.leave(job)  # its client went with the connection

    async def _remember_requests(self) -> None:
        now = time.time()
        for door in ("openai", "nats"):
            recent = Wanted(since=now - RecentRequests.SECONDS, door=door)
            page = await self.archive.list(recent, limit=_REMEMBERED)
            for past in reversed(page.jobs):
                job = past.job
                if job.digest:
                    attempt = Attempt(job.owner, job.digest, key=job.key)
                    self._recent.remember(attempt, job.id, age=now - job.created)

    def attend(self, job: Job) -> None:
        """Somebody waits for the job; `leave` must follow."""
        self._attendance.attend(job.id)

    async def leave(self, job: Job) -> None:
        """One who attended the job has gone. After the last, its grace begins to run."""
        await self._attendance.leave(job.id)
        if job.ended:
            self._attendance.forget(job.id)

    def estimate(self, given: Arguments, *, owner: str) -> tuple[GenerationRequest, Estimate]:
        """What would be drawn, when it would be done and what it takes. Raises InvalidRequest."""
        request = self.resolve(given)
        card = self.catalogue.all[request.model]
        expected = self._scheduler.estimate(request, card, owner=owner, terms=given.terms)
        coming = self.shelf.state(card.id).seconds_left or 0.0
        return request, msgspec.structs.replace(
            expected,
            eta_seconds=expected.eta_seconds + coming,
            eta_seconds_p90=expected.eta_seconds_p90 + coming,
        )

    def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[NumberedEvent, None]:
        """Events of a job numbered above `after`, to the terminal one.

        At its first step raises NotFound, StoreUnavailable; and ShuttingDown, when the server ends
        before the job.
        """
        return self._board.follow(job_id, after)

    async def wait(self, job_id: str) -> Job:
        """The job, once it has ended. Raises what `follow` raises."""
        return await self._board.ended(job_id)

    async def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is. Raises NotFound."""
        job = await self._board.get(job_id)
        await self._scheduler.cancel(job_id)
        return job if job.ended else await self.wait(job_id)

    async def job(self, job_id: str) -> Job:
        """Raises NotFound, StoreUnavailable."""
        return await self._board.get(job_id)

    def going_on(self, door: str) -> list[Job]:
        """Unfinished jobs that came through a door, oldest first."""
        return [job for job in self._board.going_on() if job.door == door]

    def feed(self, owner: str) -> AsyncIterator[Job | tuple[Job, NumberedEvent]]:
        """How an owner's unfinished jobs stand, and then every event of his; without end."""
        return self._feed.follow(owner)

    def observe(self, observer: Observer) -> None:
        """Call it with every job and event of anybody from now on."""
        self._board.observe(observer)

    async def replay(self, job_id: str, *, owner: str, door: str) -> Job:
        """Draw a job again, exactly as it was. Raises NotFound, and what `submit` raises."""
        before = await self._board.with_inputs(job_id)
        return await self.submit(replay(before.request), owner=owner, door=door, grace=FOREVER)

    async def forget(self, job_id: str) -> None:
        """Remove a job, its pictures and its events; one that goes on is cancelled first."""
        await self.cancel(job_id)
        await self.archive.forget(job_id)

    async def forget_owner(self, owner: str) -> int:
        """Remove all that is known of an owner; tell how many jobs that were."""
        for job in self._board.going_on(owner):
            await self.cancel(job.id)
        return await self.archive.forget_owner(owner)

    # -- pictures and machines ---------------------------------------------------------------------

    async def image(self, image_id: str) -> StoredImage:
        """Raises NotFound."""
        return await self.archive.image(image_id)

    @property
    def ready(self) -> bool:
        return self._scheduler.ready

    def slots(self) -> list[SlotInfo]:
        return self._scheduler.slots()

    def waiting(self) -> int:
        return self._scheduler.waiting()
