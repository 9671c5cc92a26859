"""The NATS door when its broker goes away, refuses it, or delivers twice; and when the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from tests.attacks.conftest import make_keys
from tests.conftest import fake_settings
from tests.gateway import Gateway, free_port, running_gateway
from tests.nats_broker import (
    Broker,
    ask,
    connected,
    hearing,
    running_broker,
    subject,
    until_open,
)

SLOW = {"prompt": "slow", "model": "lab/slow"}
STEP = 0.05
"""Seconds that a step of it takes."""


async def told_in_log(gateway: Gateway, words: str) -> str:
    """The log, once it has these words."""
    deadline = time.monotonic() + 20
    while words not in (log := gateway.log.read_text()):
        assert time.monotonic() < deadline, log
        await asyncio.sleep(0.05)
    return log


def jobs(gateway: Gateway, query: str = "limit=100") -> list[dict[str, Any]]:
    with gateway.client() as http:
        listed: list[dict[str, Any]] = http.get(f"/jobs?{query}").json()["jobs"]
    return listed


# -- a broker that is away -------------------------------------------------------------------------


async def test_the_server_does_without_the_broker_and_the_door_comes_back(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats")
    environment = {**fake_settings(), **broker.environment()}
    with running_gateway(tmp_path, environment) as gateway, gateway.client() as http:
        await told_in_log(gateway, "it cannot be reached")
        assert http.post("/v1/generate-image", json={"prompt": "alone"}).is_success
        broker.start()
        try:
            async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
                await until_open(client)
                # One job goes on over the broker's death, and one ends while it is dead.
                for steps, ends_first in ((40, False), (10, True)):
                    waiting = asyncio.create_task(ask(client, "request", {**SLOW, "steps": steps}))
                    known = len(heard.of("accepted"))
                    await heard.until(lambda known=known: len(heard.of("accepted")) > known)
                    job_id = heard.of("accepted")[-1]["job_id"]
                    broker.kill()
                    if ends_first:
                        while http.get(f"/jobs/{job_id}").json()["status"] != "succeeded":
                            await asyncio.sleep(0.05)
                    assert http.post("/v1/generate-image", json={"prompt": "now"}).status_code
                    broker.start()
                    answer = await waiting
                    assert answer["job_id"] == job_id
                    assert answer["image_bytes_b64"]
                    assert (await heard.result(job_id=job_id))["status"] == "succeeded"
                assert (await ask(client, "request", {"prompt": "x"}))["job_id"]
        finally:
            broker.kill()
        log = gateway.log.read_text()
        assert log.count("it cannot be reached") <= 3, "each absence is told once"
        assert "Traceback" not in log
        assert '"exception"' not in log


async def test_a_server_that_ends_says_so_and_tells_the_result_in_its_next_life(
    tmp_path: Path,
) -> None:
    with running_broker(tmp_path / "nats") as broker:
        environment = {**fake_settings(), **broker.environment(), "EASEL_DRAIN_SECONDS": "0.1"}
        async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
            with running_gateway(tmp_path, environment) as gateway:
                await until_open(client)
                waiting = asyncio.create_task(ask(client, "request", {**SLOW, "steps": 40}))
                (accepted,) = await heard.until(lambda: heard.of("accepted"))
                await asyncio.sleep(2 * STEP)
                gateway.process.terminate()
                goodbye = (await waiting)["error"]
                assert (goodbye["code"], goodbye["retry_after"]) == ("server_draining", 10)
                gateway.process.wait(20)
                assert "Traceback" not in gateway.log.read_text()
            assert heard.of("result") == []
            with running_gateway(tmp_path, environment):
                result = await heard.result(job_id=accepted["job_id"])
                assert result["status"] == "succeeded"


# -- submissions -----------------------------------------------------------------------------------


async def test_a_submission_outlives_the_broker_and_the_server_and_is_drawn_once(
    tmp_path: Path,
) -> None:
    broker = Broker(tmp_path / "nats")
    environment = {**fake_settings(), **broker.environment(EASEL_NATS_STREAM="PICTURES")}
    broker.start()
    try:
        async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
            stream = client.jetstream()
            with running_gateway(tmp_path, environment) as gateway:
                await until_open(client)
                await _stream_is_there(client)
            # Nobody takes them; the broker dies.
            for number in range(3):
                body = json.dumps({**SLOW, "steps": 12, "seed": number}).encode()
                headers = {"Nats-Msg-Id": f"picture-{number}"}
                assert not (
                    await stream.publish(subject("submit"), body, headers=headers)
                ).duplicate
                assert (await stream.publish(subject("submit"), body, headers=headers)).duplicate
            broker.kill()
            broker.start()
            await _stream_is_there(client)
            with running_gateway(tmp_path, environment) as gateway:
                await heard.until(lambda: len(heard.of("accepted")) == 3)
                await heard.until(lambda: any(one["status"] == "running" for one in jobs(gateway)))
                os.kill(gateway.process.pid, signal.SIGKILL)
                gateway.process.wait(10)
            with running_gateway(tmp_path, environment) as gateway:
                for number in range(3):
                    result = await heard.result(key=f"picture-{number}")
                    assert (result["status"], result["seed"]) == ("succeeded", number)
                assert len(jobs(gateway)) == 3
                info = await stream.stream_info("PICTURES")
                assert info.state.messages == 0
                # What is no picture leaves the stream as well, and that is told.
                await stream.publish(
                    subject("submit"), b"[]", headers={"Nats-Msg-Id": "no-picture"}
                )
                refused = await heard.result(key="no-picture")
                assert (refused["status"], refused["error"]["code"]) == ("refused", "invalid_value")
    finally:
        broker.kill()


async def _stream_is_there(client: Any) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(Error):  # the broker is not ready
            if [one.config.name for one in await client.jetstream().streams_info()]:
                return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_submission_that_is_delivered_again_and_again_is_drawn_once(
    tmp_path: Path,
) -> None:
    """The broker lets no word through that a submission has been taken, and delivers it every 0.5 s."""
    settings = """authorization { users: [
        { user: easel, password: secret, permissions: { publish: { deny: "$JS.ACK.>" } } }
        { user: admin, password: secret }
    ] }"""
    with running_broker(tmp_path / "nats", settings) as broker:
        url = broker.url
        environment = {
            **fake_settings(),
            "EASEL_NATS_URL": url.replace("//", "//easel:secret@"),
            "EASEL_NATS_STREAM": "PICTURES",
        }
        broker.url = url.replace("//", "//admin:secret@")
        async with connected(broker) as client, hearing(client, "accepted", "result") as heard:
            stream = client.jetstream()
            retention = RetentionPolicy.WORK_QUEUE
            await stream.add_stream(
                StreamConfig(name="PICTURES", subjects=[subject("submit")], retention=retention)
            )
            await stream.add_consumer(
                "PICTURES",
                ConsumerConfig(durable_name="easel", ack_policy=AckPolicy.EXPLICIT, ack_wait=0.5),
            )
            # Without a name of its own, and one that is cancelled meanwhile.
            await stream.publish(subject("submit"), json.dumps({"prompt": "x"}).encode())
            body = json.dumps({**SLOW, "steps": 900}).encode()
            await stream.publish(subject("submit"), body, headers={"Nats-Msg-Id": "stopped"})
            with running_gateway(tmp_path, environment) as gateway:
                await heard.until(lambda: len(heard.of("accepted")) == 2)
                (stopped,) = [one for one in heard.of("accepted") if one["key"] == "stopped"]
                await ask(client, f"cancel.{stopped['job_id']}")

                await deliveries(client, 10)
                assert sorted(one["status"] for one in jobs(gateway)) == ["cancelled", "succeeded"]
                os.kill(gateway.process.pid, signal.SIGKILL)
                gateway.process.wait(10)
            with running_gateway(tmp_path, environment) as gateway:
                await deliveries(client, 10)
                assert len(jobs(gateway)) == 2
                assert len(heard.of("accepted")) == 2


async def deliveries(client: Any, more: int) -> None:
    """Wait until the broker has tried so many times more."""
    first = None
    while True:
        info = await client.jetstream().consumer_info("PICTURES", "easel")
        count = info.delivered.consumer_seq
        first = count if first is None else first
        if count >= first + more:
            return
        await asyncio.sleep(0.1)


# -- strangers -------------------------------------------------------------------------------------


def test_strangers_are_not_let_in_without_a_key(tmp_path: Path) -> None:
    """A broker elsewhere, at an address that leads nowhere."""
    environment = {
        **fake_settings(),
        "EASEL_NATS_URL": "nats://127.0.0.1:4222, nats://easel:secret@192.0.2.1:4222",
    }
    place = {"EASEL_DATA_DIR": str(tmp_path), "EASEL_PORT": str(free_port())}
    refused = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        env={**os.environ, **environment, **place},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 2
    told = " ".join(refused.stderr.split())
    assert "nats_url leads to a broker that other machines can reach, and there is no key" in told
    assert "secret" not in refused.stderr
    with running_gateway(tmp_path, {**environment, "EASEL_PROXY_AUTHENTICATES": "true"}) as gateway:
        assert jobs(gateway) == []


async def test_who_forgets_the_last_key_lets_nobody_in(tmp_path: Path) -> None:
    """At home no key is needed then; by a broker that others can reach it still is."""
    keys = await make_keys(tmp_path)
    chief = {"Authorization": f"Bearer {keys['chief']}"}
    with running_broker(tmp_path / "nats") as broker:
        both = f"{broker.url},nats://192.0.2.1:4222"
        environment = {**fake_settings(), "EASEL_NATS_URL": both}
        with running_gateway(tmp_path, environment) as gateway, gateway.client() as http:
            async with connected(broker) as client:
                assert "current_model" in await until_open(client, chief)
                found = http.get("/keys", headers=chief).json()["keys"]
                for key in sorted(found, key=lambda key: key["name"] == "chief"):
                    path = f"/keys/{key['id']}?forget=true"
                    assert http.delete(path, headers=chief).is_success
                assert http.get("/v1/model-info").is_success
                refused = await ask(client, "model_info")
                assert refused["error"]["code"] == "invalid_api_key"
