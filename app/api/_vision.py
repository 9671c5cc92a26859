"""The vision service's words, whatever carries them: what it takes, its one model, what it answers.

That service belongs to a program for one person: one model at a time, one line of progress. Here the
chosen model is one for all, as its clients expect, but messages are of the caller's own jobs, whatever
door they came through. What clients may rely on is told in docs/vision-service.md.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from typing import Any

from msgspec.structs import replace

from app.api._fields import PictureFields
from app.api._models import at_hand
from app.api._pictures import to_base64
from app.domain.errors import InvalidRequest, UnknownModel
from app.domain.events import (
    Expired,
    Failed,
    JobCancelled,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.request import AUTO, Arguments
from app.service import ImageService

BUILT_IN = ("flux-schnell", "flux-dev", "sdxl-lightning")
"""Names that this door's clients send without asking what is here. Where no card has one of them, or
its files are not here, the chosen model stands in for it."""

_KEPT = 100
"""Messages that who listens later is told as well."""

_OWNERS = 1000
"""Owners whose messages are kept while none of theirs listens."""

_LARGEST = 16_384
"""Pixels of a side that could be meant."""

Json = dict[str, Any]


class Line:
    """An owner's last messages, numbered from 1, and what wakes those who listen."""

    def __init__(self) -> None:
        self.kept: deque[tuple[int, Json]] = deque(maxlen=_KEPT)
        self.last = 0
        self.listeners = 0
        self.news = asyncio.Event()

    def add(self, told: Json) -> None:
        self.last += 1
        self.kept.append((self.last, told))
        self.news.set()
        self.news = asyncio.Event()

    async def follow(self) -> AsyncGenerator[Json, None]:
        """What is kept, then what comes, without end. Who reads too slowly misses the oldest."""
        self.listeners += 1
        seen = 0
        try:
            while True:
                news = self.news
                for number, told in list(self.kept):
                    if number > seen:
                        seen = number
                        yield told
                await news.wait()
        finally:
            self.listeners -= 1


class Desk:
    """What the original keeps in global variables, for one application: its model, its messages."""

    def __init__(self, service: ImageService) -> None:
        self.service = service
        self._chosen: str | None = None
        self._lines: OrderedDict[str, Line] = OrderedDict()
        service.observe(self._hear)

    @property
    def chosen(self) -> ModelCard:
        return self.service.model(self._chosen)

    def model(self, name: str | None) -> tuple[ModelCard, bool]:
        """The card that a client means, and whether it stands in for another. Raises UnknownModel."""
        if not name:
            return self.chosen, False
        try:
            card = self.service.model(name)
            if name not in BUILT_IN or at_hand(self.service.shelf.state(card.id)):
                return card, False
        except UnknownModel:
            if name not in BUILT_IN:
                raise
        return self.chosen, True

    async def load(self, name: str, owner: str) -> tuple[ModelCard, bool]:
        """Have a worker hold the model, for all calls that name none. Raises what `ImageService.load`
        and `model` raise."""
        card, stands_in = self.model(name)
        if not self._held(card.id):
            self.line(owner).add({"message": f"Loading {card.id} model...", "model": card.id})
        await self.service.load(card)
        self._chosen = card.id
        return card, stands_in

    def line(self, owner: str) -> Line:
        if owner not in self._lines:
            silent = [one for one, line in self._lines.items() if not line.listeners]
            for one in silent[: max(0, len(self._lines) - _OWNERS + 1)]:
                del self._lines[one]
        line = self._lines.setdefault(owner, Line())
        self._lines.move_to_end(owner)
        return line

    def _hear(self, job: Job, numbered: NumberedEvent) -> None:
        event = numbered.event
        if isinstance(event, Started):
            held = self._held(job.request.model, event.worker)
            text = None if held else f"Loading {job.request.model} model..."
        else:
            text = _text(job, numbered)
        if text is not None:
            told = {"message": text, "job_id": job.id, "model": job.request.model}
            self.line(job.owner).add({**told, "timestamp": numbered.timestamp})

    def _held(self, model: str, worker: str | None = None) -> bool:
        slots = self.service.slots()
        return any(model in slot.models for slot in slots if worker in (None, slot.id))


def _text(job: Job, numbered: NumberedEvent) -> str | None:
    """The original's words for what happened, and a few for what it does not know: others."""
    request = job.request
    match numbered.event:
        case Queued(position) if numbered.number == 1 and position > 1:
            return f"Waiting in the queue (position {position})..."
        case Progressed(phase="loading_model", message=coming) if job.status == "queued":
            return coming  # how far the download of its model is
        case Progressed(phase="preparing"):
            many = f"{request.n} images of {request.size}" if request.n > 1 else ""
            steps = request.num_inference_steps
            return f"Generating {many or f'{request.size} image'} ({steps} steps)..."
        case Progressed(phase="generating", step=None):
            return "Running diffusion process..."
        case Succeeded():
            return "✓ Image generated successfully!"
        case Failed(message=why) | Expired(message=why):
            return f"✗ Image generation failed: {why}"
        case JobCancelled():
            return "✗ Image generation cancelled"
    return None


class VisionBody(PictureFields):
    """`prompt, negative_prompt, width, height, num_inference_steps, guidance_scale, seed, model …`"""

    def arguments_at(self, desk: Desk) -> Arguments:
        """The same in diffusers' names; where another model stands in for the one that is named, a size
        that was meant for that one is made to fit. Raises InvalidRequest."""
        given = self.to_arguments()
        if given.n not in (None, 1):
            raise InvalidRequest("This route draws one image for each call.", param="n")
        if given.model == AUTO:
            return given
        card, stands_in = desk.model(given.model)
        if not stands_in:
            return replace(given, model=card.id)
        given = replace(given, model=card.id, requested_model=given.model or "")
        usual = card.defaults.size
        meant = (
            usual[0] if given.width is None else given.width,
            usual[1] if given.height is None else given.height,
        )
        if all(0 < side <= _LARGEST for side in meant):  # others are refused like anywhere
            width, height = card.fitted(meant)
            given = replace(given, width=width, height=height)
        return given


def model_told(desk: Desk) -> Json:
    """The model that calls get which name none, and what it is computed on."""
    devices = [slot.device.partition(":")[0] for slot in desk.service.slots()]
    held = {model for slot in desk.service.slots() for model in slot.models}
    return {
        "cuda_available": "cuda" in devices,
        "device": devices[0] if devices else "cpu",
        "current_model": desk.chosen.id,
        "model_loaded": desk.chosen.id in held,
        "available_models": [
            card.id for card in desk.service.models() if at_hand(desk.service.shelf.state(card.id))
        ],
    }


async def picture_told(service: ImageService, job: Job) -> Json:
    """What was drawn, of a job that has ended well; without the picture itself.

    Raises what `ImageService.follow` raises.
    """
    drawn, image = job.request, job.images[0]
    width, height = drawn.picture_sides
    began = ended = job.created
    async for numbered in service.follow(job.id):
        began = numbered.timestamp if isinstance(numbered.event, Started) else began
        ended = numbered.timestamp
    return {
        "format": drawn.output_format,
        "prompt": drawn.prompt,
        "negative_prompt": drawn.negative_prompt,
        "width": width,
        "height": height,
        "num_inference_steps": drawn.num_inference_steps,
        "guidance_scale": drawn.guidance_scale,
        "seed": image.seed,
        "model": drawn.model,
        "requested_model": drawn.asked,
        "generation_time": round(ended - began, 3),
        "job_id": job.id,
    }


async def answer(service: ImageService, job: Job) -> Json:
    """The same with the picture in base64. Raises NotFound, too: the picture is gone."""
    image = await service.image(job.images[0].image_id)
    return {"image_bytes_b64": to_base64(image.data), **await picture_told(service, job)}
