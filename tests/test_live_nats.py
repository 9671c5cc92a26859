"""The vision service's subjects, on a real NATS server and before a real gateway."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pybase64
import pytest
from nats.errors import NoRespondersError

from tests.attacks.conftest import make_keys
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.nats_broker import (
    Broker,
    ask,
    connected,
    hearing,
    running_broker,
    subject,
    until_open,
)
from tests.pictures import pixels

PROMPT = "a red circle on a white background"
RED_CIRCLE = {"prompt": PROMPT, "seed": 3, "steps": 3}
SLOW = {"prompt": "slow", "model": "lab/slow"}
STEP = 0.05
"""Seconds that a step of it takes."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("nats")) as started:
        yield started


@pytest.fixture(scope="module")
def house(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Fake models, one at a time, and three may wait."""
    environment = {**fake_settings(), **broker.environment()}
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


# -- pictures --------------------------------------------------------------------------------------


async def test_the_answer_is_that_of_http_and_a_large_one_has_a_link(tmp_path: Path) -> None:
    """On a broker for large messages, which comes back as one for small ones."""
    with (
        running_broker(tmp_path / "nats") as broker,
        running_gateway(
            tmp_path, broker.environment(EASEL_NATS_BUCKET="pictures", EASEL_BATCHING="false")
        ) as gateway,
        gateway.client() as http,
    ):
        by_http = http.post("/v1/generate-image", json=RED_CIRCLE).json()
        async with connected(broker) as client, hearing(client, "result") as heard:
            assert await until_open(client) == http.get("/v1/model-info").json()
            told = await ask(client, "request", RED_CIRCLE)
            assert list(told) == list(by_http)
            for name in ("job_id", "generation_time"):
                told.pop(name), by_http.pop(name)
            assert told == by_http

            broker.kill()
            broker.settings = "max_payload: 20000"
            broker.start()
            await until_open(client)
            told = await ask(client, "request", RED_CIRCLE)
            picture = pybase64.b64decode(by_http.pop("image_bytes_b64"))
            assert told.pop("image_bytes_b64") is None
            result = await heard.result(job_id=told.pop("job_id"))
            link, place = told.pop("image_url"), told.pop("object")
            assert http.get(link).content == picture
            assert place["sha256"] == hashlib.sha256(picture).hexdigest()
            bucket = await client.jetstream().object_store(place["bucket"])
            assert (await bucket.get(place["name"])).data == picture
            assert http.get(result["image_url"]).content == picture
            assert result["object"] == place
            assert told.pop("image_id") == result["image_id"]
            assert told.pop("generation_time") > 0
            assert told == by_http
        assert PROMPT not in gateway.log.read_text()


def test_the_client_in_the_documentation(house: Gateway, broker: Broker, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "nats.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert program.count("nats://127.0.0.1:4222") == 1
    program = program.replace("nats://127.0.0.1:4222", broker.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    assert pixels((tmp_path / "circle.png").read_bytes()).shape == (256, 256, 3)
    assert house.process.poll() is None


# -- who asks --------------------------------------------------------------------------------------


async def test_where_there_are_keys_everybody_needs_one(tmp_path: Path) -> None:
    keys = await make_keys(tmp_path)
    ann, bob, fetcher, hasty, nobody = (
        {"Authorization": f"Bearer {keys.get(name, 'easel-0f3a5c7e9b1d-none')}"}
        for name in ("ann", "bob", "fetcher", "hasty", "nobody")
    )
    with (
        # So small that no picture passes: answers have links.
        running_broker(tmp_path / "nats", "max_payload: 1000") as broker,
        running_gateway(tmp_path, {**fake_settings(), **broker.environment()}) as gateway,
        gateway.client() as http,
    ):
        async with connected(broker) as client, hearing(client, "result") as heard:
            await until_open(client, ann)
            told = await ask(client, "request", {"prompt": PROMPT, "seed": 3}, headers=ann)
            job_id, link = told["job_id"], told["image_url"]
            result = await heard.result(job_id=job_id)
            # The link of the answer needs no key; that of the result, which everybody hears, does.
            assert link.startswith(gateway.url)
            assert http.get(link).content.startswith(b"\x89PNG")
            assert http.get(result["image_url"]).status_code == 401
            assert http.get(result["image_url"], headers=bob).status_code == 404
            assert http.get(result["image_url"], headers=ann).content == http.get(link).content

            for headers in (None, nobody):
                for word in ("request", "model_info", f"cancel.{job_id}"):
                    refused = await ask(client, word, {"prompt": "x"}, headers=headers)
                    assert refused["error"]["code"] == "invalid_api_key", word
            refused = await ask(client, "request", {"prompt": "x"}, headers=fetcher)
            assert refused["error"]["code"] == "not_allowed"
            codes = [
                (await ask(client, "request", {}, headers=hasty))["error"]["code"] for _ in range(4)
            ]
            assert codes == ["invalid_value"] * 3 + ["rate_limit_exceeded"]
            hidden = await ask(client, f"cancel.{job_id}", headers=bob)
            assert hidden["error"]["code"] == "not_found"
            seen = await ask(client, "model_info", headers=fetcher)
            assert seen["current_model"] == "fake"

            # One model is chosen, for both doors.
            path = "/v1/load-model?model_name=lab/batch"
            assert http.post(path, headers=fetcher).status_code == 200
            info = await ask(client, "model_info", headers=ann)
            assert info["current_model"] == "lab/batch"
        log = gateway.log.read_text()
        assert all(key not in log for key in keys.values())
        assert PROMPT not in log


# -- progress --------------------------------------------------------------------------------------


async def test_progress_is_told_in_order_and_to_the_inbox_if_asked(
    house: Gateway, broker: Broker
) -> None:
    async with (
        connected(broker) as client,
        hearing(client, "accepted", "progress.*", "result") as heard,
    ):
        await until_open(client)
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        headers = {"Easel-Progress": "inbox", "Nats-Msg-Id": "a circle of mine"}
        body = json.dumps({**SLOW, "seed": 5, "steps": 6}).encode()
        # Visible ASCII is asked for: a name with spaces is none.
        await client.publish(subject("request"), body, reply=inbox, headers=headers)
        refused = json.loads((await answers.next_msg(timeout=10)).data)
        assert refused["error"]["param"] == "Nats-Msg-Id"
        headers["Nats-Msg-Id"] = "circle-1"
        await client.publish(subject("request"), body, reply=inbox, headers=headers)
        said: list[dict[str, Any]] = []
        while "image_bytes_b64" not in (said or [{}])[-1]:
            said.append(json.loads((await answers.next_msg(timeout=20)).data))
        *events, answer = said
        job_id = answer["job_id"]
        await heard.result(job_id=job_id)

        assert heard.of("accepted") == [{"job_id": job_id, "key": "circle-1"}]
        assert heard.of(f"progress.{job_id}") == events
        assert [one["number"] for one in events] == list(range(1, len(events) + 1))
        progress = [one["progress"] for one in events if one["event"] == "progressed"]
        assert (progress, progress[-1]) == (sorted(progress), 100.0)
        steps = [one["step"] for one in events if one.get("step")]
        assert steps == [1, 2, 3, 4, 5, 6]
        assert {one["key"] for one in events} == {"circle-1"}
        # The same events are at the other door, under the same numbers.
        with house.client() as http:
            frames = http.get(f"/jobs/{job_id}/events").text.strip().split("\n\n")
        lines = [one.split("\n") for one in frames if not one.startswith(":")]
        told = [(int(one[0][4:]), one[1][7:], json.loads(one[2][6:])) for one in lines]
        bare = ("number", "event", "key")
        assert [
            (one["number"], one["event"], {k: v for k, v in one.items() if k not in bare})
            for one in events
        ] == told


async def test_a_result_is_told_of_who_waits_for_none(house: Gateway, broker: Broker) -> None:
    async with connected(broker) as client, hearing(client, "result") as heard:
        await until_open(client)
        body = json.dumps({"prompt": "nobody waits", "seed": 7}).encode()
        await client.publish(subject("request"), body, headers={"Nats-Msg-Id": "quiet-1"})
        result = await heard.result(key="quiet-1")
        assert (result["status"], result["seed"], result["error"]) == ("succeeded", 7, None)
        assert "nobody waits" not in json.dumps(result)
        with house.client() as http:
            assert http.get(f"/jobs/{result['job_id']}").json()["door"] == "nats"
            assert http.get(result["image_url"]).content.startswith(b"\x89PNG")
            assert 'door="nats"' in http.get("/metrics").text
        await client.publish(subject("request"), b"{}", headers={"Nats-Msg-Id": "quiet-2"})
        refused = await heard.result(key="quiet-2")
        assert (refused["status"], refused["error"]["param"]) == ("refused", "prompt")


async def test_a_name_makes_a_request_the_same(house: Gateway, broker: Broker) -> None:
    async with connected(broker) as client:
        await until_open(client)
        named = {"Nats-Msg-Id": "once"}
        first, second = await asyncio.gather(
            *(ask(client, "request", {"prompt": "once"}, headers=named) for _ in range(2))
        )
        assert first == second
        other = await ask(client, "request", {"prompt": "other"}, headers=named)
        assert (other["error"]["code"], other["error"]["param"]) == (
            "idempotency_key_reused",
            "Nats-Msg-Id",
        )
        # Doors have names of their own.
        with house.client() as http:
            headers = {"idempotency-key": "once"}
            body = {"prompt": "once"}
            assert http.post("/v1/images/generations", json=body, headers=headers).is_success


# -- cancelling, and other doors -------------------------------------------------------------------


async def test_a_job_is_cancelled_within_a_step(house: Gateway, broker: Broker) -> None:
    async with connected(broker) as client, hearing(client, "progress.*", "result") as heard:
        await until_open(client)
        waiting = asyncio.create_task(ask(client, "request", {**SLOW, "steps": 900}))
        steps = await heard.until(lambda: [one for one in heard.of("progress") if one.get("step")])
        job_id = steps[0]["job_id"]
        began = time.monotonic()
        told = await ask(client, f"cancel.{job_id}")
        assert (told["id"], told["status"]) == (job_id, "cancelled")
        assert time.monotonic() - began < 1.0 + STEP
        assert (await waiting)["error"]["code"] == "cancelled"
        result = await heard.result(job_id=job_id)
        assert (result["status"], result["error"]["code"]) == ("cancelled", "cancelled")
        with house.client() as http:
            assert http.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
        began = time.monotonic()
        assert (await ask(client, "cancel.nobody"))["error"]["code"] == "not_found"
        assert (await ask(client, f"cancel.{job_id}"))["status"] == "cancelled"


async def test_jobs_are_watched_and_cancelled_at_other_doors(
    house: Gateway, broker: Broker
) -> None:
    async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
        await until_open(client)
        body = json.dumps({**SLOW, "steps": 900}).encode()
        await client.publish(subject("request"), body, headers={"Nats-Msg-Id": "watched"})
        (accepted,) = await heard.until(lambda: heard.of("accepted"))
        async with httpx.AsyncClient(base_url=house.url, timeout=30) as http:
            async with http.stream("GET", f"/jobs/{accepted['job_id']}/events") as events:
                async for line in events.aiter_lines():
                    if '"step":2' in line:
                        break
            cancelled = await http.delete(f"/jobs/{accepted['job_id']}")
            assert cancelled.json()["status"] == "cancelled"
            assert (await heard.result(key="watched"))["status"] == "cancelled"
            # And the other way round; what this door did not take, it tells nothing of.
            job = (await http.post("/jobs", json={**SLOW, "steps": 900})).json()
            assert (await ask(client, f"cancel.{job['id']}"))["status"] == "cancelled"
            assert (await http.get(f"/jobs/{job['id']}")).json()["status"] == "cancelled"
        assert [one["job_id"] for one in heard.of("result")] == [accepted["job_id"]]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_value", "body"),
        (b"\xff\xfe", "invalid_value", "body"),
        (b'["prompt"]', "invalid_value", "body"),
        (b"[" * 100_000, "invalid_value", "body"),
        (b'{"prompt": "' + b"x" * 1_000_000 + b'"}', "invalid_value", "body"),
        ({}, "invalid_value", "prompt"),
        ({"prompt": 3}, "invalid_value", "prompt"),
        ({"prompt": "x", "steps": "many"}, "invalid_value", "steps"),
        ({"prompt": "x", "steps": 4, "num_inference_steps": 5}, "invalid_value", None),
        ({"prompt": "x", "n": 2}, "invalid_value", "n"),
        ({"prompt": "x", "width": -8}, "invalid_value", "width"),
        ({"prompt": "x", "model": "nobody"}, "model_not_found", "model"),
        ({"prompt": "x", "loras": [{"name": "snow"}]}, "lora_not_found", None),
    ],
)
async def test_bad_input_gets_an_error_of_its_own(
    house: Gateway, broker: Broker, body: Any, code: str, param: str | None
) -> None:
    async with connected(broker) as client:
        await until_open(client)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        refused = json.loads((await client.request(subject("request"), data, timeout=10)).data)
        assert list(refused) == ["error"]
        assert refused["error"]["code"] == code
        assert param in (None, refused["error"]["param"])
        assert house.process.poll() is None


async def test_a_full_queue_says_when_to_come_again(house: Gateway, broker: Broker) -> None:
    async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
        await until_open(client)
        body = {**SLOW, "steps": 900}
        waiting = [asyncio.create_task(ask(client, "request", body)) for _ in range(8)]
        await heard.until(
            lambda: sum(one.done() for one in waiting) + len(heard.of("accepted")) == 8
        )
        for one in heard.of("accepted"):
            await ask(client, f"cancel.{one['job_id']}")
        codes = [told["error"] for told in await asyncio.gather(*waiting)]
        full = [one for one in codes if one["code"] == "queue_full"]
        assert len(full) >= 4
        assert all(1 <= one["retry_after"] <= 59 for one in full)
        assert len(full) + sum(one["code"] == "cancelled" for one in codes) == 8


async def test_a_burst_is_answered_to_the_last(house: Gateway, broker: Broker) -> None:
    async with connected(broker) as client:
        await until_open(client)
        body = {"prompt": "one of many", "steps": 1}
        told = await asyncio.gather(*(ask(client, "request", body, within=40) for _ in range(2000)))
        codes = {one["error"]["code"] if "error" in one else "drawn" for one in told}
        assert codes == {"drawn", "queue_full"}
    assert "some are lost" not in house.log.read_text()


# -- several servers, and none ---------------------------------------------------------------------


async def test_two_gateways_share_the_requests(
    house: Gateway, broker: Broker, tmp_path: Path
) -> None:
    environment = {**fake_settings(), **broker.environment()}
    with (
        running_gateway(tmp_path, environment) as other,
        house.client() as one,
        other.client() as two,
    ):
        async with connected(broker) as client:
            await until_open(client)
            shares, asked = [0, 0], 0
            for _ in range(100):
                await ask(client, "request", {"prompt": "shared", "steps": 1})
                shares = [
                    len(http.get("/jobs?q=shared&limit=200").json()["jobs"]) for http in (one, two)
                ]
                asked += 1
                if min(shares) >= 1:
                    break
            assert min(shares) >= 1, shares
            assert sum(shares) == asked
            # Whichever has a job cancels it, and the other keeps silent.
            jobs = [http.post("/jobs", json={**SLOW, "steps": 900}).json() for http in (one, two)]
            for job in jobs:
                assert (await ask(client, f"cancel.{job['id']}"))["status"] == "cancelled"


def test_nobody_hears_a_door_that_is_not_switched_on(fake_gateway: Gateway, broker: Broker) -> None:
    async def nobody() -> None:
        async with connected(broker) as client:
            with pytest.raises(NoRespondersError):
                await client.request("nobody.is.here", b"", timeout=2)

    asyncio.run(nobody())
    log = fake_gateway.log.read_text()
    assert "NATS" not in log
