"""`/mcp`, by the client of the protocol's own package."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters, types
from mcp.client.streamable_http import streamable_http_client

from app.store.links import Links
from tests.conftest import fake_settings
from tests.documented import run_example
from tests.gateway import Gateway, free_port, running_gateway

WISH = {"prompt": "a red circle on a white background", "seed": 5}
LONG = {"prompt": "long", "model": "lab/slow", "num_inference_steps": 100}


@asynccontextmanager
async def agent(gateway: Gateway, key: str = "", mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport = streamable_http_client(f"{gateway.url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def pictures(result: types.CallToolResult) -> list[bytes]:
    return [
        base64.b64decode(part.data)
        for part in result.content
        if isinstance(part, types.ImageContent)
    ]


def text(result: types.CallToolResult) -> str:
    (part,) = (part for part in result.content if isinstance(part, types.TextContent))
    return part.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_agent_draws_and_hears_how_far_it_is(gateway: Gateway, mode: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def heard_of(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with agent(gateway, mode=mode) as client:
        listed = await client.list_tools()
        result = await client.call_tool("generate_image", WISH, progress_callback=heard_of)
    names = ["generate_image", "edit_image", "watch_job", "cancel_job", "list_models"]
    assert [tool.name for tool in listed.tools] == names
    assert not result.is_error
    (picture,) = pictures(result)
    done = [one for one, _, _ in heard]
    assert len(done) > 5
    assert all(before < after for before, after in itertools.pairwise(done))
    assert {total for _, total, _ in heard} == {100.0}
    assert any("Generating step" in (message or "") for _, _, message in heard)

    told: Any = result.structured_content
    assert json.loads(text(result)) == told
    with gateway.client() as http:
        job = http.get(f"/jobs/{told['job_id']}").json()
        assert (job["door"], job["status"], job["seed"]) == ("mcp", "succeeded", 5)
        assert http.get(f"/images/{told['images'][0]['image_id']}").content == picture
        same = http.post("/generate", json=WISH).json()["images"][0]["b64_json"]
        assert base64.b64decode(same) == picture


async def test_an_agent_edits_what_it_drew(gateway: Gateway) -> None:
    async with agent(gateway) as client:
        drawn = await client.call_tool("generate_image", {**WISH, "n": 2})
        told: Any = drawn.structured_content
        assert [one["seed"] for one in told["images"]] == [5, 6]
        wish = {"prompt": "a blue circle on a white background", "seed": 1, "strength": 0.7}
        image_id = told["images"][0]["image_id"]
        by_id = await client.call_tool("edit_image", {**wish, "image_id": image_id})
        sent = base64.b64encode(pictures(drawn)[0]).decode()
        by_bytes = await client.call_tool("edit_image", {**wish, "image": sent})
    assert pictures(by_id) == pictures(by_bytes)
    assert pictures(by_id)[0] not in pictures(drawn)


async def test_an_agent_sees_the_models(gateway: Gateway) -> None:
    async with agent(gateway) as client:
        told: Any = (await client.call_tool("list_models", {})).structured_content
    assert {"sketch", "sketch-flux"} <= {model["id"] for model in told["models"]}
    assert all(model["state"] in ("bundled", "on_disk") for model in told["models"])


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_that_is_given_up_cancels_its_job(fake_gateway: Gateway, mode: str) -> None:
    begun = asyncio.Event()

    async def heard_of(progress: float, total: float | None, message: str | None) -> None:
        if progress > 1:
            begun.set()

    async with agent(fake_gateway, mode=mode) as client, httpx.AsyncClient() as http:
        call = asyncio.create_task(
            client.call_tool("generate_image", LONG, progress_callback=heard_of)
        )
        await asyncio.wait_for(begun.wait(), 30)
        (job,) = (await http.get(f"{fake_gateway.url}/jobs?limit=1&door=mcp")).json()["jobs"]
        assert job["status"] == "running"
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(2):
            while job["status"] != "cancelled":
                job = (await http.get(f"{fake_gateway.url}/jobs/{job['id']}")).json()


async def test_a_job_that_is_cancelled_elsewhere_ends_the_call(fake_gateway: Gateway) -> None:
    async with agent(fake_gateway) as client, httpx.AsyncClient() as http:
        call = asyncio.create_task(client.call_tool("generate_image", LONG))
        jobs: list[dict[str, Any]] = []
        while not any(job["status"] == "running" for job in jobs):
            jobs = (await http.get(f"{fake_gateway.url}/jobs?limit=1&door=mcp")).json()["jobs"]
        await http.delete(f"{fake_gateway.url}/jobs/{jobs[0]['id']}")
        result = await call
    assert result.is_error
    assert text(result).endswith("(cancelled)")


@pytest.mark.parametrize(
    ("tool", "given", "told"),
    [
        ("generate_image", {}, "(invalid_value)"),
        ("generate_image", {"prompt": 7}, "(invalid_value)"),
        ("generate_image", {"prompt": "x", "size": "banana"}, "size must be"),
        ("generate_image", {"prompt": "x", "model": "nobody"}, "(model_not_found)"),
        ("generate_image", {"prompt": "x", "colour": "red"}, "takes no colour."),
        ("generate_image", {"prompt": "x", "\x1b[31m": 1}, "takes no such arguments."),
        ("edit_image", {"prompt": "x"}, "Give either image or image_id."),
        ("edit_image", {"prompt": "x", "image": "###"}, "must be a picture in base64"),
        ("edit_image", {"prompt": "x", "image_id": "../etc"}, "There is no such picture."),
        ("edit_image", {"prompt": "x", "image_id": "nobody"}, "There is no such picture."),
    ],
)
async def test_what_is_wrong_is_told_to_the_agent(
    fake_gateway: Gateway, tool: str, given: dict[str, Any], told: str
) -> None:
    async with agent(fake_gateway) as client:
        result = await client.call_tool(tool, given)
    assert result.is_error
    assert told in text(result)


async def test_keys_hold_for_agents_too(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as http:
        http.headers["authorization"] = f"Bearer {Links.open(tmp_path).local_pass()}"
        keys = [
            http.post("/keys", json={"name": name, "scopes": ["generate"]}).json()["key"]
            for name in ("first", "second")
        ]
        initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
        refused = await asyncio.to_thread(httpx.post, f"{gateway.url}/mcp", json=initialize)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        async with agent(gateway, keys[0]) as client:
            drawn: Any = (
                await client.call_tool("generate_image", {"prompt": "x"})
            ).structured_content
        image_id = drawn["images"][0]["image_id"]
        async with agent(gateway, keys[1]) as client:
            stolen = await client.call_tool("edit_image", {"prompt": "x", "image_id": image_id})
        assert stolen.is_error
        assert "There is no such picture." in text(stolen)


def test_pages_and_curious_programs_are_refused(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as http:
        page = http.post("/mcp", json={}, headers={"origin": "https://evil.example"})
        assert page.status_code == 403
        looked = http.get("/mcp")
        assert (looked.status_code, looked.headers["allow"]) == (405, "POST, DELETE")
        assert looked.json()["error"]["code"] == "method_not_allowed"
        assert http.post("/mcp", content=b"{", headers={"content-type": "text/plain"}).is_error


@asynccontextmanager
async def program(data: Path, *more: str) -> AsyncIterator[Client]:
    """What an agent talks to that starts `easel mcp`."""
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "app", "mcp", *more],
        env={"PATH": os.environ["PATH"], "HOME": str(data), "EASEL_DATA_DIR": str(data)},
    )
    async with Client(command) as client:
        yield client


async def test_a_program_of_its_own_draws_at_a_server(gateway: Gateway, tmp_path: Path) -> None:
    heard: list[float] = []

    async def heard_of(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with program(tmp_path, "--server", gateway.url) as client:
        listed = await client.list_tools()
        assert len(listed.tools) == 5
        result = await client.call_tool("generate_image", WISH, progress_callback=heard_of)
        refused = await client.call_tool("generate_image", {"prompt": "x", "size": "banana"})
    assert not result.is_error, text(result)
    assert heard == sorted(heard)
    assert len(heard) > 5
    assert pictures(result)[0].startswith(b"\x89PNG")
    assert "size must be" in text(refused)


async def test_a_call_that_a_program_gives_up_cancels_its_job(
    fake_gateway: Gateway, tmp_path: Path
) -> None:
    async with (
        program(tmp_path, "--server", fake_gateway.url) as client,
        httpx.AsyncClient(base_url=fake_gateway.url) as http,
    ):
        call = asyncio.create_task(client.call_tool("generate_image", LONG))
        jobs: list[dict[str, Any]] = []
        while not any(job["status"] == "running" for job in jobs):
            jobs = (await http.get("/jobs?limit=1&door=mcp")).json()["jobs"]
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(3):
            while jobs[0]["status"] != "cancelled":
                jobs = (await http.get("/jobs?limit=1&door=mcp")).json()["jobs"]


async def test_a_program_finds_the_server_of_its_settings_whenever_it_is_there(
    tmp_path: Path,
) -> None:
    port = str(free_port())
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "app", "mcp"],
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "EASEL_DATA_DIR": str(tmp_path),
            "EASEL_PORT": port,
        },
    )
    async with Client(command) as client:
        nobody = await client.call_tool("list_models", {})
        assert nobody.is_error
        assert text(nobody) == "No Easel answers at the server's address."
        settings = {**fake_settings(), "EASEL_PORT": port}
        with running_gateway(tmp_path, settings):
            assert not (await client.call_tool("generate_image", {"prompt": "x"})).is_error


def test_the_program_of_the_document_draws(gateway: Gateway, tmp_path: Path) -> None:
    run_example("mcp.md", gateway, tmp_path)
    assert (tmp_path / "0.png").read_bytes().startswith(b"\x89PNG")
