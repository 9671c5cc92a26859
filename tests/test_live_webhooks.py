"""Webhooks of a real gateway to a real server; and the settings for pictures that tell nothing."""

from __future__ import annotations

import asyncio
import base64
import hmac
from pathlib import Path
from typing import Any

import httpx

from app.engines.picture_text import read
from tests.conftest import fake_settings
from tests.gateway import running_gateway
from tests.receiver import Answer, Hook, receiving

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


def is_signed(hook: Hook) -> bool:
    said = f"{hook.headers['webhook-id']}.{hook.headers['webhook-timestamp']}.".encode() + hook.body
    right = base64.b64encode(hmac.digest(KEY, said, "sha256")).decode()
    return hmac.compare_digest(f"v1,{right}", hook.headers["webhook-signature"])


async def test_a_job_tells_a_server_how_it_goes(tmp_path: Path) -> None:
    async with receiving() as server:
        environment = {
            **fake_settings(),
            "EASEL_WEBHOOK_HOSTS": f'["http://{server.address}"]',
            "EASEL_WEBHOOK_SECRET": SECRET,
        }
        with running_gateway(tmp_path, environment) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
                for body, path in (
                    ({"prompt": "x", "steps": 150}, "/jobs"),
                    ({"prompt": "y", "steps": 150}, "/v1/images/generations"),
                ):
                    before = len(server.hooks)
                    answer = await client.post(path, json={**body, "webhook": server.url})
                    job = answer.headers.get("x-easel-job") or answer.json()["id"]
                    await client.get(f"/jobs/{job}/events")
                    hooks = await server.wait(before + 4)
                    while hooks[-1].said["type"] == "job.progress":  # more of it, on a busy machine
                        hooks = await server.wait(len(hooks) + 1)
                    kinds = [hook.said["type"] for hook in hooks[before:]]
                    assert kinds[:3] == ["job.created", "job.started", "job.progress"]
                    assert kinds[-1] == "job.finished"
                    assert all(is_signed(hook) for hook in hooks)
                    shown = (await client.get(f"/jobs/{job}")).json()
                    told: dict[str, Any] = hooks[-1].said["job"]
                    assert told == {name: shown[name] for name in told}
                    assert told["status"] == "succeeded"

                foreign = await client.post(
                    "/jobs", json={"prompt": "x", "webhook": "http://127.0.0.1:1/x"}
                )
                assert (foreign.status_code, foreign.json()["error"]["param"]) == (400, "webhook")
                assert len((await client.get("/jobs")).json()["jobs"]) == 2
            assert "hush" not in gateway.log.read_text()


async def test_an_end_that_nobody_heard_is_told_by_the_next_process(tmp_path: Path) -> None:
    async with receiving() as server:
        environment = {
            **fake_settings(),
            "EASEL_WEBHOOK_HOSTS": f'["http://{server.address}"]',
            "EASEL_WEBHOOK_SECRET": SECRET,
        }
        body = {"prompt": "x", "steps": 4, "webhook": server.url}
        server.answer = lambda hook: Answer(503 if hook.said["type"] == "job.finished" else 200)
        with running_gateway(tmp_path, environment) as gateway, gateway.client() as client:
            job = client.post("/jobs", json=body).json()["id"]
            client.get(f"/jobs/{job}/events")
            while server.types()[-1:] != ["finished"]:
                await server.wait(len(server.hooks) + 1)
            gateway.process.kill()

        server.answer = lambda _: Answer()
        before = len(server.hooks)
        with running_gateway(tmp_path, environment) as gateway, gateway.client() as client:
            again = (await server.wait(before + 1))[before]
            await asyncio.sleep(0.5)  # it gets its answer, and has it written down
            shown = client.get(f"/jobs/{job}").json()
        assert again.said["type"] == "job.finished"
        assert again.headers["webhook-id"] == f"{job}-finished"
        assert again.said["job"] == {name: shown[name] for name in again.said["job"]}

        with running_gateway(tmp_path, environment) as gateway, gateway.client() as client:
            client.get("/health")
            await asyncio.sleep(0.5)
        assert server.types()[before:] == ["finished"]


def test_without_allowed_hosts_there_are_no_webhooks(tmp_path: Path) -> None:
    environment = {**fake_settings(), "EASEL_METADATA": "false"}
    with running_gateway(tmp_path, environment) as gateway, gateway.client() as client:
        refused = client.post("/jobs", json={"prompt": "x", "webhook": "https://example.com/x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")
        # The same server leaves out what pictures tell, unless it is asked for.
        for given, tells in (({}, False), ({"metadata": True}, True)):
            answer = client.post("/v1/images/generations", json={"prompt": "fox", **given})
            drawn = base64.b64decode(answer.json()["data"][0]["b64_json"])
            assert ("prompt" in read(drawn).facts) == tells
