"""The same three acts at every door: submit a job, watch one, cancel one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from mcp import Client as Agent
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from websockets.asyncio.client import connect

from tests.grpc_clients import Client as Grpc
from tests.nats_broker import PREFIX

SLOW = "lab/slow"


@dataclass
class Seen:
    """What somebody who watched a job saw: how far it was each time, and its end."""

    progress: list[float] = field(default_factory=list)
    end: str = ""


class Door(Protocol):
    async def submit(self, prompt: str, steps: int) -> object:
        """Have it drawn, and wait for the end."""

    async def watch(self, job_id: str) -> Seen: ...

    async def cancel(self, job_id: str) -> object: ...


def _wish(prompt: str, steps: int) -> dict[str, Any]:
    return {"prompt": prompt, "model": SLOW, "num_inference_steps": steps}


@dataclass
class Rest:
    http: httpx.AsyncClient

    async def submit(self, prompt: str, steps: int) -> object:
        return await self.http.post("/generate", json=_wish(prompt, steps))

    async def watch(self, job_id: str) -> Seen:
        seen = Seen()
        async with self.http.stream("GET", f"/jobs/{job_id}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    seen.end = line.removeprefix("event: ")
                elif line.startswith("data: ") and seen.end == "progressed":
                    seen.progress.append(json.loads(line.removeprefix("data: "))["progress"])
        return seen

    async def cancel(self, job_id: str) -> object:
        return await self.http.delete(f"/jobs/{job_id}")


@dataclass
class Socket:
    address: str

    async def submit(self, prompt: str, steps: int) -> object:
        return await self._follow({"type": "generate", **_wish(prompt, steps)})

    async def watch(self, job_id: str) -> Seen:
        return await self._follow({"type": "watch", "job_id": job_id})

    async def _follow(self, said: dict[str, Any]) -> Seen:
        seen = Seen()
        async with connect(self.address) as socket:
            await socket.send(json.dumps(said))
            while not seen.end:
                told = json.loads(await socket.recv())
                match told["type"]:
                    case "picture":
                        await socket.recv()
                    case "progressed":
                        seen.progress.append(told["progress"])
                    case "done":
                        seen.end = "succeeded"
                    case "error":
                        seen.end = told["error"]["code"]
        return seen

    async def cancel(self, job_id: str) -> object:
        async with connect(self.address) as socket:
            await socket.send(json.dumps({"type": "cancel", "job_id": job_id}))
            await socket.send("{}")  # answered after it
            return await socket.recv()


@dataclass
class Rpc:
    """Its client waits in threads."""

    grpc: Grpc

    async def submit(self, prompt: str, steps: int) -> object:
        request = self.grpc.request(prompt, model=SLOW, steps=steps)
        return await self._drawn(lambda: self.grpc.images.GenerateImageStream(request))

    async def watch(self, job_id: str) -> Seen:
        return await self._drawn(lambda: self.grpc.watch(job_id))

    async def _drawn(self, call: Callable[[], Any]) -> Seen:
        def follow() -> Seen:
            seen = Seen()
            for event in call():
                match event.WhichOneof("event"):
                    case "progress":
                        seen.progress.append(event.progress.progress)
                    case "ended":
                        seen.end = event.ended.status
            return seen

        return await asyncio.to_thread(follow)

    async def cancel(self, job_id: str) -> object:
        return await asyncio.to_thread(self.grpc.cancel, job_id)


@dataclass
class Broker:
    nats: Nats

    async def submit(self, prompt: str, steps: int) -> object:
        body = json.dumps(_wish(prompt, steps)).encode()
        return await self.nats.request(f"{PREFIX}.request", body, timeout=60)

    async def watch(self, job_id: str) -> Seen:
        seen, over = Seen(), asyncio.Event()

        async def heard(message: Msg) -> None:
            told = json.loads(message.data)
            seen.end = told.get("event", "error")
            if seen.end == "progressed":
                seen.progress.append(told["progress"])
            elif seen.end in ("succeeded", "failed", "cancelled", "expired", "error"):
                over.set()

        inbox = self.nats.new_inbox()
        await self.nats.subscribe(inbox, cb=heard)
        await self.nats.publish(f"{PREFIX}.watch.{job_id}", b"", reply=inbox)
        await asyncio.wait_for(over.wait(), 60)
        return seen

    async def cancel(self, job_id: str) -> object:
        return await self.nats.request(f"{PREFIX}.cancel.{job_id}", b"", timeout=60)


@dataclass
class Chat:
    agent: Agent

    async def submit(self, prompt: str, steps: int) -> object:
        return await self.agent.call_tool("generate_image", _wish(prompt, steps))

    async def watch(self, job_id: str) -> Seen:
        seen = Seen()

        async def heard(progress: float, total: float | None, message: str | None) -> None:
            seen.progress.append(progress)

        answer = await self.agent.call_tool(
            "watch_job", {"job_id": job_id}, progress_callback=heard
        )
        seen.end = "error" if answer.is_error else "succeeded"
        return seen

    async def cancel(self, job_id: str) -> object:
        return await self.agent.call_tool("cancel_job", {"job_id": job_id})


@dataclass
class Shell:
    url: str
    folder: str

    async def submit(self, prompt: str, steps: int) -> object:
        words = ("generate", prompt, "--model", SLOW, "--steps", str(steps))
        return await self._run(*words, "-o", f"{self.folder}/{prompt}.png")

    async def watch(self, job_id: str) -> Seen:
        told = await self._run("jobs", "watch", job_id, "--json-events")
        events = [json.loads(line) for line in told.splitlines()]
        progress = [one["progress"] for one in events if one.get("event") == "progressed"]
        return Seen(progress, events[-1]["status"])

    async def cancel(self, job_id: str) -> object:
        return await self._run("jobs", "cancel", job_id)

    async def _run(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app",
            *words,
            env={"PATH": os.environ["PATH"], "HOME": self.folder, "EASEL_SERVER": self.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await process.communicate()
        return out.decode()
