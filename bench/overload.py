"""Ten times more than can be drawn, from clients that try again: is as much drawn as at the peak?

The clients are OpenAI's SDK with its own retries, which go by the status and Retry-After. The peak is
what four patient clients get. Every refusal must be quick, and tell when to come again.
"""

from __future__ import annotations

import asyncio
import secrets
import time

import httpx2
import openai

from bench.server import FAKE, HOST, serving
from bench.stats import Row, tail

_TIMES = 10.0


def run(*, quick: bool) -> tuple[list[Row], bool]:
    settings = {
        **FAKE,
        "EASEL_PRELOAD": '["quarter"]',
        "EASEL_MAX_RUNNING": "1",
        "EASEL_MAX_QUEUE": "20",
        "EASEL_BATCHING": "false",
    }
    with serving(settings) as port:
        return asyncio.run(_overloaded(port, 8.0 if quick else 60.0)), True


async def _overloaded(port: int, seconds: float) -> list[Row]:
    refusals: list[float] = []
    odd: list[str] = []
    began: dict[int, float] = {}

    async def sent(request: httpx2.Request) -> None:
        began[id(request)] = time.perf_counter()

    async def answered(answer: httpx2.Response) -> None:
        took = time.perf_counter() - began.pop(id(answer.request))
        if answer.status_code == 200:
            return
        refusals.append(took)
        await answer.aread()
        error = answer.json().get("error", {})
        wait = answer.headers.get("retry-after", "")
        if answer.status_code not in (429, 503) or set(error) != {
            "message",
            "type",
            "param",
            "code",
        }:
            odd.append(f"{answer.status_code}")
        elif not (wait.isdecimal() and 1 <= int(wait) <= 120):
            odd.append(f"retry-after {wait}")

    limits = httpx2.Limits(max_connections=2000, max_keepalive_connections=200)
    async with httpx2.AsyncClient(
        event_hooks={"request": [sent], "response": [answered]}, limits=limits, timeout=120
    ) as http:
        client = openai.AsyncOpenAI(
            base_url=f"http://{HOST}:{port}/v1", api_key="none", http_client=http
        )
        peak = await _peak(client, min(seconds, 15.0))
        refusals.clear()
        drawn, asked = await _flood(client, _TIMES * peak, seconds)
        later = await _peak(client, 5.0)
    return [
        Row("overload", "peak, four patient clients", f"{peak:.2f} pictures a second"),
        Row(
            "overload",
            f"{_TIMES:.0f} times that for {seconds:.0f} s, {asked} clients: drawn / peak",
            f"{drawn / peak:.1%} ({drawn:.2f} a second)",
            ">= 95 %",
        ),
        Row("overload", "a refusal takes", tail(refusals), "p99 < 50 ms"),
        Row(
            "overload",
            "refusals without status, envelope or Retry-After",
            f"{len(odd)} of {len(refusals)}",
            "0",
        ),
        Row("overload", "after it, drawn / peak", f"{later / peak:.1%}"),
    ]


async def _peak(client: openai.AsyncOpenAI, seconds: float) -> float:
    """Pictures a second, when nobody has to be refused."""
    end = time.monotonic() + seconds

    async def patient() -> int:
        count = 0
        while time.monotonic() < end:
            count += await _one(client)
        return count

    begun = time.monotonic()
    counts = await asyncio.gather(*(patient() for _ in range(4)))
    return sum(counts) / (time.monotonic() - begun)


async def _flood(client: openai.AsyncOpenAI, rate: float, seconds: float) -> tuple[float, int]:
    """Pictures a second while new clients come at `rate`; and how many came."""
    begun = time.monotonic()
    in_time = 0

    async def stranger() -> None:
        nonlocal in_time
        if await _one(client) and time.monotonic() - begun <= seconds:
            in_time += 1

    tasks = []
    while (now := time.monotonic() - begun) < seconds:
        tasks.append(asyncio.create_task(stranger()))
        await asyncio.sleep(max(0.0, len(tasks) / rate - now))
    await asyncio.wait(tasks, timeout=60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return in_time / seconds, len(tasks)


async def _one(client: openai.AsyncOpenAI) -> bool:
    """Whether a picture came. No two clients want the same: a retry would get another one's."""
    try:
        answer = await client.images.generate(model="quarter", prompt=secrets.token_hex(8))
    except openai.OpenAIError:
        return False
    return bool(answer.data and answer.data[0].b64_json)
