"""Jobs, their events and their pictures, as messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from app.api._models import at_hand
from app.api.grpc import starweave_pb2 as pb
from app.domain.errors import EaselError, NotFound
from app.domain.events import ImageReady, NumberedEvent, Progressed, Queued, Started
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.service import ImageService


async def events_of(
    service: ImageService, job: Job, *, after: int = 0
) -> AsyncGenerator[pb.ImageEvent, None]:
    """All events of a job above `after`, to the last one; pictures without their bytes.

    Raises Unavailable, when the server ends before the job.
    """
    began = 0.0
    async with aclosing(service.follow(job.id, after)) as events:
        async for numbered in events:
            said = pb.ImageEvent(
                job_id=job.id, number=numbered.number, timestamp=numbered.timestamp
            )
            match numbered.event:
                case Queued() | Progressed() as event:
                    said.progress.CopyFrom(_progress(event))
                case Started(attempt=attempt, model=model):
                    began = numbered.timestamp
                    said.started.CopyFrom(pb.Started(attempt=attempt, model=model))
                case ImageReady(index=index, image_id=name, seed=seed):
                    picture = image_of(job, index, name, seed)
                    _timed(picture, began, numbered)
                    said.image.CopyFrom(picture)
                case _:
                    ended = await service.job(job.id)
                    said.ended.CopyFrom(job_of(ended))
            yield said


def image_of(job: Job, index: int, image_id: str, seed: int) -> pb.ImageResponse:
    """A picture of a job, but for its bytes."""
    drawn = job.request
    width, height = drawn.picture_sides
    return pb.ImageResponse(
        request_id=job.id,
        format=drawn.output_format,
        metadata=pb.GenerationMetadata(
            model=drawn.model,
            seed=seed,
            image_id=image_id,
            index=index,
            width=width,
            height=height,
            steps=drawn.num_inference_steps,
            guidance_scale=drawn.guidance_scale,
            sampler=drawn.sampler,
            style=drawn.style,
            prompt=drawn.prompt,
            negative_prompt=drawn.negative_prompt,
        ),
    )


async def fill(service: ImageService, picture: pb.ImageResponse) -> None:
    """Its bytes; or why there are none, where somebody has removed it."""
    try:
        stored = await service.image(picture.metadata.image_id)
        picture.image_data = stored.data
    except NotFound as error:
        picture.error = told(error)


def told(error: EaselError) -> str:
    """What stands in the place of a picture."""
    return f"{error.code}: {error.message}"


def missing_of(job: Job, index: int, error: EaselError) -> pb.ImageResponse:
    """What stands for a picture that was not drawn, although others of its job were."""
    seed = job.request.seed + index
    answer = image_of(job, index, "", seed)
    answer.error = told(error)
    return answer


def _timed(picture: pb.ImageResponse, began: float, ready: NumberedEvent) -> None:
    when = Timestamp()
    when.FromMilliseconds(round(ready.timestamp * 1000))
    picture.metadata.generated_at.CopyFrom(when)
    if began:
        picture.metadata.generation_time_ms = max(0, round((ready.timestamp - began) * 1000))


def _progress(event: Queued | Progressed) -> pb.Progress:
    if isinstance(event, Queued):
        return pb.Progress(
            phase="queued",
            progress=event.progress,
            eta_seconds=event.eta_seconds,
            message=event.reason,
            queue_position=event.position,
        )
    return pb.Progress(
        phase=event.phase,
        progress=event.progress,
        fraction=event.fraction,
        eta_seconds=event.eta_seconds,
        message=event.message,
        step=event.step,
        total_steps=event.total_steps,
        preview=event.preview or b"",
        image_index=event.image_index,
    )


def job_of(job: Job) -> pb.Job:
    drawn = job.request
    width, height = drawn.picture_sides
    return pb.Job(
        id=job.id,
        status=job.status,
        door=job.door,
        owner=job.owner,
        created=job.created,
        model=drawn.model,
        requested_model=drawn.asked,
        prompt=drawn.prompt,
        negative_prompt=drawn.negative_prompt,
        width=width,
        height=height,
        n=drawn.n,
        steps=drawn.num_inference_steps,
        guidance_scale=drawn.guidance_scale,
        sampler=drawn.sampler,
        style=drawn.style,
        seed=drawn.seed,
        priority=job.terms.priority,
        deadline=job.terms.deadline,
        attempt=job.attempt,
        progress=pb.Progress(
            progress=job.progress,
            fraction=job.fraction,
            eta_seconds=job.eta_seconds,
            message=job.message,
            step=job.step,
            total_steps=job.total_steps,
            queue_position=job.position or None,
        ),
        images=[
            image_of(job, index, image.image_id, image.seed)
            for index, image in sorted(job.images.items())
        ],
        error_code=job.error_code or "",
        error=job.error_message or "",
    )


def model_of(service: ImageService, card: ModelCard) -> pb.ModelResponse.ModelInfo:
    usual = card.defaults
    width, height = usual.size
    held = {model for slot in service.slots() for model in slot.models}
    return pb.ModelResponse.ModelInfo(
        id=card.id,
        name=card.title or card.id,
        description=f"{card.pipeline_name}, {card.licence}" if card.licence else card.pipeline_name,
        capabilities=card.tasks,
        parameters=_parameters(card),
        aliases=card.aliases,
        family=card.family,
        defaults=pb.ImageSettings(
            width=width,
            height=height,
            steps=usual.num_inference_steps,
            guidance_scale=usual.guidance_scale,
            sampler=usual.sampler,
            negative_prompt=usual.negative_prompt,
        ),
        samplers=card.samplers,
        loaded=card.id in held,
        here=at_hand(service.shelf.state(card.id)),
    )


def _parameters(card: ModelCard) -> dict[str, str]:
    """What the settings may hold for this model, and of which type each is."""
    idle: set[str] = set(card.ignores)
    if not card.kind.guided:
        idle.add("guidance_scale")
    if not card.negative_prompt:
        idle.add("negative_prompt")
    if not card.kind.loras:
        idle.add("loras")
    return {
        field.name: _TYPES[field.type]
        for field in pb.ImageSettings.DESCRIPTOR.fields
        if field.name not in idle
    }


_TYPES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_MESSAGE: "repeated Lora",
    FieldDescriptor.TYPE_STRING: "string",
}
