"""A job is one job, whatever door it came through: seen, watched and cancelled at every other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from mcp import Client as Agent

from tests.conftest import fake_settings
from tests.every_door import Broker, Chat, Door, Rest, Rpc, Shell, Socket
from tests.gateway import free_port, running_gateway
from tests.grpc_clients import Client as Grpc
from tests.grpc_clients import Stubs, stubs
from tests.nats_broker import connected, running_broker, until_open

__all__ = ["stubs"]

NAMES = {
    "rest": "diffugen",
    "socket": "websocket",
    "rpc": "grpc",
    "broker": "nats",
    "chat": "mcp",
    "shell": "jobs",
}
"""What a job says it came through."""


class House:
    def __init__(self, http: httpx.AsyncClient, doors: dict[str, Door]) -> None:
        self.http = http
        self.doors = doors

    async def job(self, prompt: str) -> dict[str, str]:
        """The job of this prompt, once it runs."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.http.get("/jobs", params={"q": prompt})
                for job in answer.json()["jobs"]:
                    if job["status"] == "running":
                        return dict(job)
                await asyncio.sleep(0.05)


@asynccontextmanager
async def open_house(tmp_path: Path, stubs: Stubs) -> AsyncIterator[House]:
    """Not a fixture: those begin and end in tasks of their own, and the agent's client in one."""
    port = free_port()
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(running_broker(tmp_path / "broker"))
        settings = {
            **fake_settings(),
            **broker.environment(),
            "EASEL_GRPC_PORT": str(port),
            "EASEL_MAX_RUNNING": "40",
            "EASEL_MAX_QUEUE": "100",
        }
        gateway = stack.enter_context(running_gateway(tmp_path, settings))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60))
        nats = await stack.enter_async_context(connected(broker))
        await until_open(nats)
        doors: dict[str, Door] = {
            "rest": Rest(http),
            "socket": Socket(f"ws://127.0.0.1:{gateway.port}/generate/ws"),
            "rpc": Rpc(stack.enter_context(Grpc(stubs, port))),
            "broker": Broker(nats),
            "chat": Chat(await stack.enter_async_context(Agent(f"{gateway.url}/mcp"))),
            "shell": Shell(gateway.url, str(tmp_path)),
        }
        yield House(http, doors)


async def test_a_job_is_watched_and_cancelled_at_every_door(tmp_path: Path, stubs: Stubs) -> None:
    async with open_house(tmp_path, stubs) as house:
        for name in house.doors:
            await _is_watched(house, name)
        pairs = [(name, other) for name in house.doors for other in house.doors if other != name]
        for begin in range(0, len(pairs), 6):
            some = pairs[begin : begin + 6]
            await asyncio.gather(*(_is_cancelled(house, *pair) for pair in some))


async def _is_watched(house: House, name: str) -> None:
    submitted = asyncio.create_task(house.doors[name].submit(f"watched{name}", 60))
    job = await house.job(f"watched{name}")
    assert job["door"] == NAMES[name]
    seen = await asyncio.gather(*(other.watch(job["id"]) for other in house.doors.values()))
    await submitted
    for other, what in zip(house.doors, seen, strict=True):
        assert what.end == "succeeded", (name, other, what)
        assert len(what.progress) > 2, (name, other)
        assert what.progress == sorted(what.progress), (name, other)
        assert what.progress[-1] == 100.0, (name, other)


async def _is_cancelled(house: House, name: str, other: str) -> None:
    prompt = f"{name}x{other}"
    submitted = asyncio.create_task(house.doors[name].submit(prompt, 1000))
    job = await house.job(prompt)
    await house.doors[other].cancel(job["id"])
    async with asyncio.timeout(20):
        await asyncio.gather(submitted, return_exceptions=True)
    now = (await house.http.get(f"/jobs/{job['id']}")).json()
    assert now["status"] == "cancelled", (name, other)
