"""Jobs, events and pictures for the tests of the store."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any

from ulid import ULID

from app.domain.events import (
    ImageReady,
    JobEvent,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.job import Job
from app.domain.request import GenerationRequest
from app.store.jobs import JobStore, News, Picture

NOON = 1_795_262_400.0
"""A Unix time at 12:00 UTC."""

_CLOCK = itertools.count(1)


def new_id() -> str:
    return str(ULID())


def make_job(
    prompt: str = "a red cube", *, owner: str = "anna", created: float | None = None, **given: Any
) -> Job:
    """A job that was just accepted; what is given beside goes into its request."""
    fields: dict[str, Any] = {
        "model": "sketch",
        "family": "fake",
        "task": "text2image",
        "prompt": prompt,
        "negative_prompt": "",
        "n": 1,
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "true_cfg_scale": 1.0,
        "sampler": "euler",
        "seed": 7,
        "strength": 1.0,
        "output_format": "png",
        "output_compression": 100,
        "max_sequence_length": 77,
    }
    when = NOON + next(_CLOCK) if created is None else created
    return Job(
        id=new_id(),
        owner=owner,
        door="jobs",
        request=GenerationRequest(**(fields | given)),
        created=when,
        changed=when,
    )


def png(width: int = 64, height: int = 64, content: bytes = b"") -> bytes:
    """The header of a PNG, and something behind it."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size
    return head + struct.pack(">I", zlib.crc32(size)) + content


class Teller:
    """Tells the events of one job, numbered and timed in order."""

    def __init__(self, job: Job, *, last: int = 0, attempt: int = 0) -> None:
        self.job_id = job.id
        self.now = job.created
        self.last = last
        self.attempt = attempt

    def news(self, event: JobEvent, picture: Picture | None = None, after: float = 1.0) -> News:
        if isinstance(event, Started):
            self.attempt = event.attempt
        self.last += 1
        self.now += after
        return News(self.job_id, self.attempt, NumberedEvent(self.last, self.now, event), picture)

    def beginning(self, attempt: int = 1) -> list[News]:
        return [
            self.news(Queued(1, 4.0, "next")),
            self.news(Started("cpu", attempt)),
            self.news(Progressed("generating", 40.0, 0.5, 2.0, "Generating step 1/3", 1, 3)),
        ]

    def picture(self, picture: Picture) -> News:
        return self.news(ImageReady(picture.index, picture.id, picture.seed), picture)

    def ending(self, event: JobEvent | None = None, after: float = 1.0) -> News:
        return self.news(event or Succeeded(), after=after)


async def finish(
    store: JobStore, job: Job, event: JobEvent | None = None, *, seconds: float = 1.0, **more: Any
) -> None:
    """See an accepted job to its end; its attempt takes `seconds`."""
    teller = Teller(job)
    news = [teller.news(Queued(1, 4.0, "next")), teller.news(Started("cpu", 1))]
    if (picture := more.get("picture")) is not None:
        news.append(teller.picture(picture))
        seconds -= 1.0
    assert all(await store.append([*news, teller.ending(event, after=seconds)]))
