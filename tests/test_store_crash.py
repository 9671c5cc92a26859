"""kill -9 at any moment: what a process was told is stored is there afterwards.

A child accepts jobs, tells their events, stores their pictures, and prints what the store acknowledged,
until it is killed; the next one goes on with the same files.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.domain.events import TERMINAL
from app.store.blobs import Folder
from app.store.database import Database
from app.store.history import History
from app.store.jobs import JobStore
from app.store.pictures import PictureStore

CHILD = """
import asyncio, sys
from pathlib import Path
from app.store.blobs import Folder
from app.store.database import Database
from app.store.jobs import JobStore
from app.store.pictures import PictureStore, StoredImage
from tests.stored import Teller, make_job, new_id, png

def say(*words):
    sys.stdout.write(" ".join(words) + "\\n")
    sys.stdout.flush()

async def one(store, pictures):
    while True:
        job = make_job("a red cube", image=b"in")
        EARLY and say("accepted", job.id)
        await store.accept(job)
        say("accepted", job.id)
        teller = Teller(job)
        assert all(await store.append(teller.beginning()))
        say("told", job.id, "3")
        image = StoredImage(png(content=job.id.encode() * 40), "image/png")
        picture = await pictures.put(new_id(), 0, 7, image)
        assert all(await store.append([teller.picture(picture), teller.ending()]))
        say("told", job.id, "5")

async def main(url, folder):
    async with await Database.open(url) as database:
        store = JobStore(database)
        pictures = PictureStore(database, Folder(Path(folder)), memory_bytes=1)
        await pictures.open()
        say("ready")
        await asyncio.gather(*(one(store, pictures) for _ in range(4)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def live_and_die(url: str, folder: Path, seconds: float, *, early: bool = False) -> list[list[str]]:
    """What a child said in `seconds` of work, before it was killed."""
    code = f"EARLY = {early}\n{CHILD}"
    command = [sys.executable, "-c", code, url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        assert lines[0] == b"ready\n"
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        said = lines[0] + child.stdout.read()
    return [line.split() for line in said.decode().splitlines()[1:] if not line.endswith(" ")]


async def missing(url: str, folder: Path, said: list[list[str]]) -> list[str]:
    """What was acknowledged and is not there; everything else that must hold is asserted."""
    lost: list[str] = []
    async with await Database.open(url) as database:
        assert await database.check() == []
        store = JobStore(database)
        pictures = PictureStore(database, Folder(folder), memory_bytes=1, clock=lambda: 4e9)
        history = History(database, pictures)
        page = await history.list(limit=1_000_000)
        pasts = {past.job.id: past for past in page.jobs}
        for what, job_id, *count in said:
            if job_id not in pasts or (
                what == "told" and len(await store.events(job_id)) < int(count[0])
            ):
                lost.append(job_id)
        unfinished = {job.id for job in await store.unfinished()}
        for past in pasts.values():
            events = await store.events(past.job.id)
            assert [one.number for one in events] == list(range(1, len(events) + 1))
            ends = [one for one in events if isinstance(one.event, TERMINAL)]
            assert len(ends) == (past.job.id not in unfinished) == past.job.ended
        await pictures.open()
        assert (await pictures.sweep()).missing == []
        stored = {one.digest for past in pasts.values() for one in past.pictures}
        names = {blob.name[3:67] async for page in Folder(folder).pages() for blob in page
                 if "/" in blob.name}  # fmt: skip
        assert names == stored
        await pictures.close()
    return lost


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "times"), [("sqlite", 20), ("postgresql", 5)])
async def test_what_was_acknowledged_before_a_kill_is_there(
    kind: str, times: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'easel.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
    rng, said = random.Random(4), []
    for _ in range(times):
        said += live_and_die(url, tmp_path / "pictures", rng.uniform(0.02, 0.4))
    assert len(said) > 2 * times, "too little happened before the kills"
    assert await missing(url, tmp_path / "pictures", said) == []


async def test_a_process_that_acknowledges_too_early_is_caught(tmp_path: Path) -> None:
    """The control: were jobs acknowledged before the commit, the test above would see it."""
    url = f"sqlite:///{tmp_path / 'easel.db'}"
    lost: list[str] = []
    for seconds in (0.05, 0.1, 0.15, 0.2) * 5:
        said = live_and_die(url, tmp_path / "pictures", seconds, early=True)
        lost += await missing(url, tmp_path / "pictures", said)
        if lost:
            return
    pytest.fail("no early acknowledgement was noticed")
