"""Everything that a front door may ask for."""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from app.attendance import Attendance
from app.domain.errors import InvalidRequest, NotFound, UnknownModel
from app.domain.events import NumberedEvent
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.request import SEED_LIMIT, Arguments, GenerationRequest
from app.gpu_scheduler import GpuScheduler
from app.job_board import JobBoard
from app.presets import Presets
from app.recent_requests import Attempt, RecentRequests
from app.scheduling.expectations import device_kind
from app.scheduling.schedule import Estimate
from app.store.image_files import ImageFiles, StoredImage
from app.workers.base import SlotInfo


class ImageService:
    """Submit, follow, wait, cancel; models, jobs and pictures.

    What you can rely on: a request that cannot be drawn is refused before a job exists, with an
    `InvalidRequest` that names the field; a job that was given out reaches one of its ends.
    """

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        default_model: str,
        foreign_models: tuple[str, ...],
        aliases: Mapping[str, str],
        scheduler: GpuScheduler,
        board: JobBoard,
        images: ImageFiles,
        presets: Presets,
    ) -> None:
        self._cards = cards
        self._default = cards[default_model]
        self._foreign = foreign_models
        self._scheduler = scheduler
        self._board = board
        self._images = images
        self._presets = presets
        self._attendance = Attendance(scheduler.cancel)
        self._recent = RecentRequests()
        self._names = {name: card for card in cards.values() for name in (card.id, *card.aliases)}
        self._names |= {alias: self._names[name] for alias, name in aliases.items()}

    # -- models ------------------------------------------------------------------------------------

    def models(self) -> list[ModelCard]:
        return list(self._cards.values())

    def model(self, name: str | None, family: str | None = None) -> ModelCard:
        """The card that a client means by `name`: an id, an alias, or nothing at all.

        Names of OpenAI's own models, and an absent one, mean the default model; where a front door
        serves one `family` only, its default is the first card of that family.

        Raises:
            UnknownModel: no card answers to the name.
            InvalidRequest: the model is of another family.
        """
        if not name or any(fnmatch.fnmatchcase(name, foreign) for foreign in self._foreign):
            if family is None or self._default.family == family:
                return self._default
            card = next((card for card in self._cards.values() if card.family == family), None)
        else:
            card = self._names.get(name)
        if card is None:
            known = ", ".join(self._cards)
            raise UnknownModel(f"This model does not exist here. Models: {known}.", param="model")
        if family is not None and card.family != family:
            raise InvalidRequest(
                f"Model {card.id} is of family {card.family}, and this route draws {family} only.",
                param="model",
            )
        return card

    # -- jobs --------------------------------------------------------------------------------------

    def resolve(self, given: Arguments, family: str | None = None) -> GenerationRequest:
        """The request that a submission would draw. Raises InvalidRequest."""
        card = self.model(given.model, family)
        request = card.resolve(given, draw_seed=lambda: secrets.randbelow(SEED_LIMIT))
        technique = self._presets.technique(card, self._device, request.preset)
        return msgspec.structs.replace(request, technique=technique)

    def presets(self, card: ModelCard) -> dict[str, dict[str, Any]]:
        """The presets that the model has here, and what was measured of each."""
        return self._presets.shown(card, self._device)

    def preset_of(self, request: GenerationRequest) -> dict[str, Any]:
        """How a request is drawn: its preset, the technique, and what was measured of that."""
        figures = self.presets(self._cards[request.model]).get(request.preset, {})
        if figures.get("technique") != request.technique:  # calibrated anew meanwhile
            figures = {}
        return {"preset": request.preset, **figures, "technique": request.technique}

    @property
    def _device(self) -> str:
        return next((device_kind(slot.device) for slot in self._scheduler.slots()), "cpu")

    def submit(
        self,
        given: Arguments,
        *,
        owner: str,
        door: str,
        family: str | None = None,
        grace: float = 0.0,
    ) -> Job:
        """Take a job. When all who attend it have left, it goes on for `grace` seconds.

        Raises InvalidRequest, QueueFull, ShuttingDown; then no job exists.
        """
        request = self.resolve(given, family)
        self._scheduler.check_room()
        job = self._board.open(request, owner=owner, door=door, terms=given.terms)
        self._attendance.grant(job.id, grace)
        self._scheduler.submit(job, self._cards[request.model])
        return job

    def submit_once(
        self, attempt: Attempt, given: Arguments, *, door: str, grace: float = 0.0
    ) -> tuple[Job, bool]:
        """The job of the request that this one repeats, and True; or else a new job, and False.

        A job that failed or was cancelled is not given again: a retry then draws anew.
        Raises what `submit` raises, and KeyReused.
        """
        known = self._recent.find(attempt)
        if known is not None:
            with suppress(NotFound):  # forgotten meanwhile
                job = self._board.get(known)
                if job.status in ("queued", "running", "succeeded"):
                    return job, True
        job = self.submit(given, owner=attempt.owner, door=door, grace=grace)
        self._recent.remember(attempt, job.id)
        return job, False

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
        card = self._cards[request.model]
        return request, self._scheduler.estimate(request, card, owner=owner, terms=given.terms)

    def follow(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """Events of a job numbered above `after`, to the terminal one. Raises NotFound."""
        self._board.get(job_id)
        return self._board.follow(job_id, after)

    async def wait(self, job_id: str) -> Job:
        """The job, once it has ended. Raises NotFound."""
        async for _ in self._board.follow(job_id):
            pass
        return self._board.get(job_id)

    async def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is. Raises NotFound."""
        job = self._board.get(job_id)
        await self._scheduler.cancel(job_id)
        return job

    def job(self, job_id: str) -> Job:
        """Raises NotFound."""
        return self._board.get(job_id)

    def jobs(self, *, words: str = "", limit: int = 50) -> list[Job]:
        """Jobs of every door, newest first; with `words`, those whose prompt holds them all."""
        wanted = words.casefold().split()
        found = (
            job
            for job in self._board.jobs()
            if all(word in job.request.prompt.casefold() for word in wanted)
        )
        return [job for job, _ in zip(found, range(limit), strict=False)]

    # -- pictures and machines ---------------------------------------------------------------------

    async def image(self, image_id: str) -> StoredImage:
        """Raises NotFound."""
        return await self._images.get(image_id)

    @property
    def ready(self) -> bool:
        return self._scheduler.ready

    def slots(self) -> list[SlotInfo]:
        return self._scheduler.slots()

    def waiting(self) -> int:
        return self._scheduler.waiting()
