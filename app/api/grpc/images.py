"""`ImageGenerationService`: pictures are drawn for as long as their call goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from app.api._jobs import attended, error_of
from app.api.grpc import starweave_pb2 as pb
from app.api.grpc.answers import events_of, fill, missing_of, model_of
from app.api.grpc.calls import Calls, Context, greet
from app.api.grpc.requests import arguments_of, variations_of
from app.domain.errors import Cancelled, GenerationFailed
from app.domain.job import Job
from app.service import ImageService


class ImageGeneration:
    def __init__(self, service: ImageService, calls: Calls) -> None:
        self._service = service
        self._calls = calls

    @property
    def methods(self) -> dict[str, Callable[[Any, Context], Any]]:
        return {
            "GenerateImage": self.generate_image,
            "GenerateImageVariations": self.generate_image_variations,
            "GetImageModels": self.get_image_models,
            "GenerateImageStream": self.generate_image_stream,
        }

    async def generate_image(self, message: pb.ImageRequest, context: Context) -> pb.ImageResponse:
        answer = pb.ImageResponse()
        job = await self._take(message, context)
        async with aclosing(self._drawn(job, context)) as events:
            async for event in events:
                if event.HasField("image"):
                    answer = event.image
        return answer

    async def generate_image_stream(
        self, message: pb.ImageRequest, context: Context
    ) -> AsyncGenerator[pb.ImageEvent, None]:
        job = await self._take(message, context)
        async with aclosing(self._drawn(job, context)) as events:
            async for event in events:
                yield event

    async def generate_image_variations(
        self, message: pb.ImageVariationsRequest, context: Context
    ) -> AsyncGenerator[pb.ImageResponse, None]:
        base, n = variations_of(message)
        job = await self._take(base, context, n=n)
        sent: set[int] = set()
        try:
            async with aclosing(self._drawn(job, context)) as events:
                async for event in events:
                    if event.HasField("image"):
                        sent.add(event.image.metadata.index)
                        yield event.image
        except GenerationFailed as error:
            if not sent:
                raise
            for index in sorted(set(range(n)) - sent):
                yield missing_of(job, index, error)

    async def get_image_models(self, _: pb.ModelRequest, __: Context) -> pb.ModelResponse:
        service = self._service
        return pb.ModelResponse(models=[model_of(service, card) for card in service.models()])

    # -- jobs --------------------------------------------------------------------------------------

    async def _take(self, message: pb.ImageRequest, context: Context, *, n: int = 1) -> Job:
        """A job that `_drawn` must follow, and leaves. Raises what `ImageService.submit` raises."""
        caller = await self._calls.caller(message.user_id)
        given = arguments_of(message, n=n, remaining=context.time_remaining())
        self._calls.taken_in()
        return await attended(self._service, given, owner=caller.owner, door="grpc")

    async def _drawn(self, job: Job, context: Context) -> AsyncGenerator[pb.ImageEvent, None]:
        """All that happens to the job; when nobody listens any more, it ends within a step.

        Raises what it failed with, and Unavailable, when the server ends before it.
        """
        try:
            await greet(context, ("x-easel-job", job.id))
            async with aclosing(events_of(self._service, job)) as events:
                async for event in events:
                    ended = event.ended.status if event.HasField("ended") else ""
                    if ended not in ("", "succeeded"):
                        raise error_of(await self._service.job(job.id)) or _CANCELLED
                    if event.HasField("image"):
                        await fill(self._service, event.image)
                    yield event
        finally:
            await self._service.leave(job)


_CANCELLED = Cancelled("The job was cancelled.")
