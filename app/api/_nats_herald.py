"""Tells over NATS how jobs go on and what became of them: those who wait, and all who listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.errors import BadSubjectError, MaxPayloadError

from app.api._jobs import error_of
from app.api._nats_link import Link
from app.api._nats_stream import Bucket
from app.api._nats_words import error_told, name_of, progress_told, result_told
from app.api._vision import answer, picture_told
from app.domain.errors import EaselError, InvalidRequest
from app.domain.events import NumberedEvent
from app.domain.job import Job
from app.service import ImageService

_log = logging.getLogger(__name__)

_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class Inbox:
    """Where somebody waits for the answer, and whether for the progress, too."""

    def __init__(self, subject: str, *, progress: bool) -> None:
        self.subject = subject
        self.progress = progress
        self.answered: asyncio.Future[EaselError | None] = asyncio.Future()
        """What the answer was, if no picture."""


class _Watch:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.inboxes: list[Inbox] = []
        self.stored: dict[str, Any] | None = None
        """Where the picture is in the bucket."""


class Herald:
    """`prefix` is what subjects begin with, `address` what links do.

    What you can rely on: however often the broker goes away, each inbox gets one answer and each job
    that has ended one result, or more; what is told of the progress meanwhile is lost.
    """

    def __init__(
        self, service: ImageService, link: Link, bucket: Bucket | None, prefix: str, address: str
    ) -> None:
        self._service = service
        self._link = link
        self._bucket = bucket
        self._prefix = prefix
        self._address = address
        self._watches: dict[str, _Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, job: Job, inbox: Inbox | None = None, *, fresh: bool) -> None:
        """See a job to its end. Of one that is not `fresh`, what happened before is not told again."""
        watch = self._watches.get(job.id)
        if watch is None:
            watch = self._watches[job.id] = _Watch(job)
            task = asyncio.create_task(self._see_off(watch, fresh=fresh))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if inbox is not None:
            watch.inboxes.append(inbox)

    async def close(self, within: float) -> None:
        """Give answers that are due `within` seconds to be sent."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def publish(self, word: str, told: dict[str, Any]) -> bool:
        """Tell all who listen, once there is a link; False where it is too large."""
        return await self._sent(self._link.deliver, f"{self._prefix}.{word}", told)

    async def answer(self, inbox: str, told: dict[str, Any]) -> bool:
        """Tell who has asked, once there is a link; False where it is too large."""
        return await self._sent(self._link.answer, inbox, told)

    async def _sent(
        self, send: Callable[[str, bytes], Awaitable[None]], subject: str, told: dict[str, Any]
    ) -> bool:
        try:
            await send(subject, msgspec.json.encode(told))
        except MaxPayloadError:
            return False
        except BadSubjectError:
            _log.warning("an answer could not be sent by NATS: its subject is none")
        return True

    async def _see_off(self, watch: _Watch, *, fresh: bool) -> None:
        job, error, ended = watch.job, None, False
        try:
            if fresh:
                said = {"job_id": job.id, "key": name_of(job)}
                await self._link.tell(f"{self._prefix}.accepted", msgspec.json.encode(said))
            after = 0 if fresh else job.last_event
            async with contextlib.aclosing(self._service.follow(job.id, after)) as events:
                async for numbered in events:
                    await self._tell(watch, numbered)
            job = await self._service.job(job.id)
            error, ended = error_of(job), job.ended
        except EaselError as failed:
            error = failed
        except Exception as failed:
            error = _mistake(failed, job)
        while watch.inboxes:
            await self._answer(watch, watch.inboxes.pop(0), job, error)
        del self._watches[job.id]
        if ended:
            picture = {} if error else await self._places(watch, job, signed=False)
            if not await self.publish("result", result_told(job, error, picture)):
                _log.warning("the result of the job %s is too large for NATS", job.id)

    async def _tell(self, watch: _Watch, numbered: NumberedEvent) -> None:
        told = progress_told(watch.job, numbered)
        await self._link.tell(f"{self._prefix}.progress.{watch.job.id}", told)
        for inbox in watch.inboxes:
            if inbox.progress:
                await self._link.tell(inbox.subject, told)

    async def _answer(
        self, watch: _Watch, inbox: Inbox, job: Job, error: EaselError | None
    ) -> None:
        try:
            if error is not None:
                raise error
            if not await self.answer(inbox.subject, await answer(self._service, job)):
                told = await picture_told(self._service, job)
                places = await self._places(watch, job, signed=True)
                if not await self.answer(
                    inbox.subject, {"image_bytes_b64": None, **told, **places}
                ):
                    raise InvalidRequest(
                        f"The answer is too large for this broker; see /jobs/{job.id}."
                    )
        except Exception as failed:
            error = failed if isinstance(failed, EaselError) else _mistake(failed, job)
            await self.answer(inbox.subject, error_told(error))
        if not inbox.answered.done():
            inbox.answered.set_result(error)

    async def _places(self, watch: _Watch, job: Job, *, signed: bool) -> dict[str, Any]:
        """Where the picture can be fetched. A link that needs no key is for who waits for it alone."""
        image_id = job.images[0].image_id
        path = self._service.archive.link(image_id) if signed else f"/images/{image_id}"
        client = self._link.client
        if self._bucket is not None and watch.stored is None and client is not None:
            with contextlib.suppress(EaselError):  # the picture is gone
                image = await self._service.image(image_id)
                name = f"{image_id}.{_SUFFIXES.get(image.media_type, 'bin')}"
                watch.stored = await self._bucket.put(client, name, image)
        return {
            "image_id": image_id,
            "image_url": f"{self._address}{path}",
            "object": watch.stored,
        }


def _mistake(error: Exception, job: Job) -> EaselError:
    _log.error("it could not be told what became of the job %s", job.id, exc_info=error)
    return EaselError("The server made a mistake. Its log tells more.")
