"""The store with a long history: how long lists, searches and acceptances take.

The database is one of SQLite on this machine's disk, filled through the store's own methods. Prompts
follow a steep distribution of words, as real ones do: a few words are in half of all prompts, most in
a handful.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

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
from app.store.blobs import Folder
from app.store.database import Database
from app.store.history import History, Wanted
from app.store.jobs import JobStore, News, Picture
from app.store.pictures import PictureStore
from app.store.statistics import Statistics
from bench.stats import Row, tail

_NOW = 1_795_000_000.0
_STARTS = ("sto", "ren", "ka", "mil", "tru", "ves")
_MIDDLES = ("ba", "le", "ni", "ro", "shu", "ta", "vo")
_ENDS = ("", "x", "ne", "ra", "st", "lo")
_WORDS = [f"{one}{two}{three}" for one in _STARTS for two in _MIDDLES for three in _ENDS]
_MODELS = ("sketch", "sketch-flux", "sdxl", "flux")
_SIZES = (256, 512, 768, 1024)


def run(*, quick: bool) -> tuple[list[Row], bool]:
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        return asyncio.run(_measure(Path(folder), 10_000 if quick else 100_000)), True


async def _measure(folder: Path, jobs: int) -> list[Row]:
    rng = random.Random(1)
    async with await Database.open(f"sqlite:///{folder / 'easel.db'}") as database:
        store = JobStore(database)
        began = time.perf_counter()
        await _fill(store, rng, jobs)
        filled = time.perf_counter() - began
        await _mark(database, rng, jobs)
        history = History(database, PictureStore(database, Folder(folder), memory_bytes=1))
        statistics = Statistics(database)

        def row(what: str, seconds: list[float], goal: str = "") -> Row:
            return Row("store", what, tail(seconds), goal)

        lists = [wanted for wanted in _lists(rng) for _ in range(10)]
        searches = [wanted for wanted in _searches(rng) for _ in range(10)]
        kept = f"of {jobs} jobs, 50 a page"
        listed = await _times(lists, lambda wanted: _look(history, wanted, rng, jobs))
        searched = await _times(searches, lambda wanted: _look(history, wanted, rng, jobs))
        worst = max(zip(searched, searches, strict=True), key=lambda pair: pair[0])
        size = (folder / "easel.db").stat().st_size
        rows = [
            row(f"list {kept}", listed, "p95 < 50 ms"),
            row(f"search {kept}", searched, "p95 < 50 ms"),
            Row("store", "slowest search", f"{worst[0] * 1e3:.1f} ms: {_told(worst[1])}"),
            row("statistics of all", await _times([0.0] * 5, lambda _: statistics.report())),
            row("accept a job", await _accepts(store, rng, 300), "p50 < 2 ms"),
            row("store an event", await _appends(store, rng, 300)),
            Row(
                "store", "fill, 7 events and a picture a job", f"{jobs / filled:.0f} jobs a second"
            ),
            Row("store", "file", f"{size / jobs:.0f} bytes a job"),
        ]
    for synchronous in ("normal", "full"):
        place = f"sqlite:///{folder / synchronous}.db"
        async with await Database.open(place, synchronous=synchronous) as database:
            seconds = await _accepts(JobStore(database), rng, 300)
            rows.append(Row("store", f"accept, empty, synchronous={synchronous}", tail(seconds)))
    return rows


async def _times(each: list[Any], act: Callable[[Any], Awaitable[object]]) -> list[float]:
    seconds = []
    for one in each:
        began = time.perf_counter()
        await act(one)
        seconds.append(time.perf_counter() - began)
    return seconds


async def _look(history: History, wanted: Wanted, rng: random.Random, jobs: int) -> None:
    """The first page, or one from somewhere in the middle."""
    cursor = str(rng.randint(1, jobs)) if rng.random() < 0.3 else None
    await history.list(wanted, cursor=cursor)


def _lists(rng: random.Random) -> list[Wanted]:
    since = _NOW - rng.uniform(1e4, 1e6)
    return [
        Wanted(),
        Wanted(model="flux"),
        Wanted(status="succeeded"),
        Wanted(status="queued"),
        Wanted(owner="owner-3"),
        Wanted(owner="nobody"),
        Wanted(size="512x768"),
        Wanted(since=since),
        Wanted(until=since),
        Wanted(favourite=True),
        Wanted(tag="rare"),
        Wanted(tag="common"),
        Wanted(model="sdxl", owner="owner-5", size="256x256", status="succeeded"),
        Wanted(model="sdxl", tag="rare"),
    ]


def _searches(rng: random.Random) -> list[Wanted]:
    common, usual, rare = _WORDS[0], _WORDS[40], _WORDS[-1]
    return [
        Wanted(words=common),
        Wanted(words=usual),
        Wanted(words=rare),
        Wanted(words=f"{common} {usual}"),
        Wanted(words=f"{usual} {rare}"),
        Wanted(words=f"{common} {_WORDS[1]} {_WORDS[2]}"),
        Wanted(words="s"),
        Wanted(words="st k"),
        Wanted(words="nothing has this"),
        Wanted(words=common, owner="owner-3", model="flux"),
        Wanted(words=common, favourite=True),
        Wanted(words=usual, status="failed"),
        Wanted(words=rng.choice(_WORDS), since=_NOW - 1e5),
    ]


def _told(wanted: Wanted) -> str:
    given = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    return ", ".join(f"{name}={value}" for name, value in given.items() if value)


def _job(rng: random.Random, number: int, jobs: int) -> Job:
    places = (int(len(_WORDS) * rng.random() ** 3) for _ in range(rng.randint(4, 30)))
    created = _NOW - (jobs - number) * 30.0
    return Job(
        id=f"01{number:024d}",
        owner=f"owner-{int(20 * rng.random() ** 2)}",
        door="jobs",
        created=created,
        changed=created,
        request=GenerationRequest(
            model=rng.choice(_MODELS),
            family="fake",
            task="text2image",
            prompt=" ".join(_WORDS[place] for place in places),
            negative_prompt="",
            n=1,
            width=rng.choice(_SIZES),
            height=rng.choice(_SIZES),
            num_inference_steps=30,
            guidance_scale=5.0,
            true_cfg_scale=1.0,
            sampler="euler",
            seed=number,
            strength=1.0,
            output_format="png",
            output_compression=100,
            max_sequence_length=77,
        ),
    )


def _life(job: Job, number: int) -> list[News]:
    image = Picture(id=f"02{number:024d}", index=0, seed=number, media_type="image/png",
                    bytes=400_000, digest=f"{number:064x}", width=512, height=512)  # fmt: skip
    steps = [Progressed("generating", 10.0 * step, 0.1 * step, 3.0, f"Generating step {step}/30",
                        step, 30) for step in (10, 20, 30)]  # fmt: skip
    events: list[JobEvent] = [Queued(1, 4.0, "next"), Started("cuda:0", 1), *steps]
    events += [ImageReady(0, image.id, number), Succeeded()]
    return [
        News(
            job.id,
            min(place - 1, 1),
            NumberedEvent(place, job.created + place, event),
            image if isinstance(event, ImageReady) else None,
        )
        for place, event in enumerate(events, 1)
    ]


async def _fill(store: JobStore, rng: random.Random, jobs: int) -> None:
    for first in range(0, jobs, 1000):
        some = [_job(rng, number, jobs) for number in range(first, min(first + 1000, jobs))]
        await asyncio.gather(*(store.accept(job, within=60.0) for job in some))
        news = [one for number, job in enumerate(some, first) for one in _life(job, number)]
        await store.append(news)


async def _mark(database: Database, rng: random.Random, jobs: int) -> None:
    history = History(database, PictureStore(database, Folder(Path("/none")), memory_bytes=1))
    some = [rng.randrange(jobs) for _ in range(jobs // 50)]
    await asyncio.gather(
        *(history.favourite(f"02{number:024d}") for number in some[: jobs // 200]),
        *(history.tag(f"01{number:024d}", "common") for number in some),
        *(history.tag(f"01{number:024d}", "rare") for number in some[:20]),
    )


async def _accepts(store: JobStore, rng: random.Random, times: int) -> list[float]:
    begin = time.time_ns()
    jobs = [_job(rng, begin + number, begin) for number in range(times)]
    return await _times(jobs, store.accept)


async def _appends(store: JobStore, rng: random.Random, times: int) -> list[float]:
    job = _job(rng, time.time_ns(), 1)
    await store.accept(job)
    await store.append(_life(job, 0)[:2])
    step = _life(job, 0)[2]
    news = [
        News(job.id, 1, NumberedEvent(number, _NOW, step.event.event))
        for number in range(3, 3 + times)
    ]
    return await _times([[one] for one in news], store.append)
