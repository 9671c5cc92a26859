"""`JobService`: jobs of every door, for who may see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from app.api._owner import visible_job
from app.api.grpc import starweave_pb2 as pb
from app.api.grpc.answers import events_of, fill, job_of
from app.api.grpc.calls import Calls, Context
from app.domain.errors import InvalidRequest
from app.domain.job import Job
from app.service import ImageService


class Jobs:
    def __init__(self, service: ImageService, calls: Calls) -> None:
        self._service = service
        self._calls = calls

    @property
    def methods(self) -> dict[str, Callable[[Any, Context], Any]]:
        return {
            "GetJob": self.get_job,
            "WatchJob": self.watch_job,
            "CancelJob": self.cancel_job,
        }

    async def get_job(self, message: pb.JobRequest, _: Context) -> pb.Job:
        told = job_of(await self._own(message.job_id))
        if message.with_images:
            for image in told.images:
                await fill(self._service, image)
        return told

    async def watch_job(
        self, message: pb.WatchJobRequest, _: Context
    ) -> AsyncGenerator[pb.ImageEvent, None]:
        if message.after < 0:
            raise InvalidRequest("after must be 0 or the number of an event.", param="after")
        job = await self._own(message.job_id)
        async with aclosing(events_of(self._service, job, after=message.after)) as events:
            async for event in events:
                if message.with_images and event.HasField("image"):
                    await fill(self._service, event.image)
                yield event

    async def cancel_job(self, message: pb.JobRequest, _: Context) -> pb.Job:
        await self._own(message.job_id)
        return job_of(await self._service.cancel(message.job_id))

    async def _own(self, job_id: str) -> Job:
        """Raises NotFound, StoreUnavailable."""
        return await visible_job(self._service, await self._calls.caller(), job_id)
