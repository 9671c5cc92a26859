"""A thousand open streams: how long an event takes to each, and what a stream costs; and a hundred
through nginx, among clients that draw and ask.

Twenty jobs of a fake model share its twenty steps a second, and have fifty followers each. They begin
and end one after the other: a thousand readers of one moment wait for each other. An event is timed
from the moment that it got its number, before it was stored, to that at which a follower has read it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx

from bench.nginx import nginx_before
from bench.server import FAKE, HOST, Client, serving
from bench.stats import Row, percentile, tail

_TIME = re.compile(rb'"timestamp": ?([0-9.]+)')

_OPENING = 4.0
"""Seconds over which the streams are opened."""


def run(*, quick: bool) -> tuple[list[Row], bool]:
    jobs, steps = (4, 30) if quick else (20, 60)
    settings = {**FAKE, "EASEL_MAX_RUNNING": str(jobs), "EASEL_PRELOAD": '["slow"]'}
    # All come from one address here.
    room = {"limit_conn easel_clients 256": "limit_conn easel_clients 2000"}
    with serving(settings) as port:
        rows = asyncio.run(_followed(port, port, jobs, steps, 50))
        with (
            tempfile.TemporaryDirectory(prefix="easel-nginx-") as folder,
            nginx_before(port, Path(folder), **room) as url,
        ):
            front = int(url.rpartition(":")[2])
            rows += asyncio.run(_in_a_mix(port, front, 20 if quick else 100, pause=1.0))
            if not quick:  # as much as this many can make of it, and no goal
                rows += asyncio.run(_in_a_mix(port, front, 100, pause=0.2))
    return rows, True


async def _in_a_mix(port: int, front: int, steps: int, pause: float) -> list[Row]:
    """A hundred clients of nginx: fifty follow, forty list and look, ten draw, each `pause` seconds
    after its last answer. These have a process of their own: nobody who is timed waits for them."""
    spawn = multiprocessing.get_context("spawn")
    stop, asked = spawn.Event(), spawn.Value("i", 0)
    others = spawn.Process(target=_others, args=(front, pause, stop, asked))
    others.start()
    while not asked.value:
        await asyncio.sleep(0.1)
    rows = await _followed(port, front, 5, steps, 10)
    stop.set()
    others.join(60)
    name = f"through nginx, among 50 others who ask every {pause:g} s"
    return [
        Row("streams", f"{name}: {row.what}", row.figure, row.goal if pause >= 1 else "")
        for row in rows
        if "memory" not in row.what
    ]


def _others(front: int, pause: float, stop: Event, asked: Synchronized[int]) -> None:
    async def ask(number: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{front}", timeout=60) as client:
            while not stop.is_set():
                if number % 5 == 0:
                    body = {"prompt": "x", "model": "fake", "size": "64x64"}
                    (await client.post("/generate", json=body)).raise_for_status()
                else:
                    (await client.get("/jobs?limit=5")).raise_for_status()
                asked.value += 1
                await asyncio.sleep(pause)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(50)))

    asyncio.run(all_of_them())


async def _followed(port: int, front: int, jobs: int, steps: int, each: int) -> list[Row]:
    """Jobs that are submitted at `port`, and followed by so many `each` at `front`."""
    client = Client(port)
    before = _memory(port)
    ids = []
    begun = time.monotonic()
    for number in range(jobs):
        body = {"prompt": f"{number}", "model": "slow", "num_inference_steps": steps + 3 * number}
        ids.append(json.loads(client.ask("POST", "/jobs", body))["id"])
        await asyncio.sleep(1 / jobs)
    followers = []
    for one in ids:
        followers += [asyncio.create_task(_follow(front, one)) for _ in range(each)]
        await asyncio.sleep(_OPENING / jobs)  # what is measured is open streams, not their opening
    await asyncio.sleep(steps / 12)
    during = _memory(port)
    seen = await asyncio.gather(*followers)
    delays = [delay for delays, _ in seen for delay in delays]
    whole = sum(complete for _, complete in seen)
    memory = (during - before) / len(followers)
    what = (
        f"{len(followers)} streams, {len(delays) / (time.monotonic() - begun):.0f} events a second"
    )
    return [
        Row("streams", f"{what}: delivery", tail(delays), "p99 < 50 ms"),
        Row(
            "streams",
            "longest",
            f"{max(delays) * 1e3:.0f} ms; p99.9 {percentile(delays, 0.999) * 1e3:.0f}",
        ),
        Row("streams", "memory of the server, each", f"{memory / 1024:.0f} KiB", "< 64 KiB"),
        Row("streams", "streams without a gap, to the end", f"{whole} of {len(followers)}"),
    ]


async def _follow(port: int, job: str) -> tuple[list[float], bool]:
    """How late each event came; and whether all of them did, one by one, to the terminal one."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET /jobs/{job}/events HTTP/1.1\r\nhost: {HOST}:{port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    joined = time.time()
    delays: list[float] = []
    numbers: list[int] = []
    last = b""
    while size := int((await reader.readline()) or b"0", 16):
        block = await reader.readexactly(size)
        await reader.readexactly(2)
        now = time.time()
        told = map(float, _TIME.findall(block))
        delays += [now - at for at in told if at > joined]  # not what was replayed
        numbers += [int(one) for one in re.findall(rb"^id: (\d+)", block, re.MULTILINE)]
        last = block or last
    writer.close()
    return delays, numbers == list(range(1, len(numbers) + 1)) and b"succeeded" in last


def _memory(port: int) -> float:
    """Bytes that the serving process holds."""
    text = httpx.get(f"http://{HOST}:{port}/metrics").text
    [line] = [one for one in text.splitlines() if one.startswith("easel_process_resident")]
    return float(line.split()[-1])
