"""Webhooks, as a client's server gets them."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.domain.errors import InvalidRequest, QueueFull
from app.domain.events import (
    ImageReady,
    JobEvent,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.store.errors import StoreUnavailable
from app.webhooks.courier import _retry_after
from app.webhooks.outbox import Webhooks, kind_of
from app.webhooks.policy import WebhookPolicy
from tests.receiver import Answer, Hook, Receiver, receiving

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_795_262_400.25


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


def policy(*receivers: Receiver, **given: Any) -> WebhookPolicy:
    quick: dict[str, Any] = {
        "secret": SECRET,
        "backoff": (0.02, 0.04, 0.06, 0.08),
        "interval": 0.5,
        "timeout": 5.0,
        "hosts": tuple(f"http://{receiver.address}" for receiver in receivers),
    }
    return WebhookPolicy(**{**quick, **given})


@asynccontextmanager
async def webhooks(*receivers: Receiver, **given: Any) -> AsyncIterator[Webhooks]:
    made = Webhooks(policy(*receivers, **given), clock=lambda: NOW)
    try:
        yield made
    finally:
        await made.close(0)


def is_signed(hook: Hook, key: bytes = KEY) -> bool:
    """By the convention's text, not by our code."""
    said = f"{hook.headers['webhook-id']}.{hook.headers['webhook-timestamp']}.".encode() + hook.body
    right = base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
    return f"v1,{right}" in hook.headers["webhook-signature"].split(" ")


# -- what is sent ----------------------------------------------------------------------------------


async def test_a_webhook_says_what_happened_and_is_signed(receiver: Receiver) -> None:
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "created", {"id": "job", "prompt": "ein Würfel"})
        hook = (await receiver.wait(1))[0]
    assert hook.target == "/hook?token=hush"
    assert hook.headers["host"] == receiver.address
    assert hook.headers["content-type"] == "application/json"
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", hook.said["id"])
    assert hook.said == {
        "id": hook.headers["webhook-id"],
        "type": "job.created",
        "created": NOW,
        "job": {"id": "job", "prompt": "ein Würfel"},
    }
    assert hook.headers["webhook-timestamp"] == str(int(NOW))
    assert is_signed(hook)
    assert not is_signed(hook, KEY[::-1])


async def test_while_secrets_change_both_sign(receiver: Receiver) -> None:
    other = KEY[::-1]
    secrets = f"{SECRET} whsec_{base64.b64encode(other).decode()}"
    async with webhooks(receiver, secret=secrets) as hooks:
        hooks.tell("job", receiver.url, "finished", {})
        hook = (await receiver.wait(1))[0]
    assert is_signed(hook)
    assert is_signed(hook, other)


async def test_the_documents_lines_verify_a_webhook(receiver: Receiver) -> None:
    text = (Path(__file__).parents[1] / "docs" / "webhooks.md").read_text()
    lines = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(lines.replace("time.time()", str(NOW)), names)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "finished", {})
        hook = (await receiver.wait(1))[0]
    assert names["is_from_easel"](SECRET, hook.headers, hook.body)
    assert not names["is_from_easel"](SECRET, hook.headers, hook.body + b" ")
    old = {**hook.headers, "webhook-timestamp": str(int(NOW) - 3600)}
    assert not names["is_from_easel"](SECRET, old, hook.body)


@pytest.mark.parametrize(
    ("number", "event", "kind"),
    [
        (1, Queued(1, 2.0, "next"), "created"),
        (2, Queued(1, 2.0, "next"), None),
        (3, Started("gpu", 1), "started"),
        (4, Progressed("generating", 10.0, 0.1, 1.0, "step"), "progress"),
        (5, ImageReady(0, "image", 7), "progress"),
        (6, Succeeded(), "finished"),
        (1, Succeeded(), "finished"),
    ],
)
def test_events_have_their_kinds(number: int, event: JobEvent, kind: str | None) -> None:
    assert kind_of(NumberedEvent(number, NOW, event)) == kind


async def test_an_end_keeps_its_id_over_processes(receiver: Receiver) -> None:
    for process in (1, 2):
        async with webhooks(receiver) as hooks:
            hooks.tell("job", receiver.url, "finished", {})
            await receiver.wait(process)
    assert {hook.headers["webhook-id"] for hook in receiver.hooks} == {"job-finished"}


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_only_ends_are_settled_and_those_given_up_as_well(
    receiver: Receiver, status: int
) -> None:
    settled: list[str] = []

    async def note(job_id: str) -> None:
        settled.append(job_id)

    receiver.answer = lambda _: Answer(status)
    made = Webhooks(policy(receiver, backoff=(0.02,)), clock=lambda: NOW, settled=note)
    made.tell("job", receiver.url, "created", {})
    hooks = await receiver.wait(2 if status == 500 else 1)
    await asyncio.sleep(0.1)
    assert settled == []
    made.tell("job", receiver.url, "finished", {})
    await receiver.wait(2 * len(hooks))
    await made.close(5)
    assert settled == ["job"]


async def test_an_end_that_waits_for_its_next_try_is_not_settled(receiver: Receiver) -> None:
    settled: list[str] = []

    async def note(job_id: str) -> None:
        settled.append(job_id)

    receiver.answer = lambda _: Answer(503)
    made = Webhooks(policy(receiver, backoff=(60.0, 60.0)), clock=lambda: NOW, settled=note)
    made.tell("job", receiver.url, "finished", {})
    await receiver.wait(1)
    await made.close(0.3)
    assert settled == []


async def test_a_store_that_does_not_answer_stops_no_webhook(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: str) -> None:
        raise StoreUnavailable("not now")

    made = Webhooks(policy(receiver), clock=lambda: NOW, settled=fail)
    made.tell("job", receiver.url, "finished", {})
    made.tell("other", receiver.url, "finished", {})
    await receiver.wait(2)
    await made.close(5)
    assert "webhook of job other is not settled" in caplog.text


# -- order and throttle ----------------------------------------------------------------------------


async def test_of_a_burst_of_progress_the_latest_goes_out_and_finished_is_last(
    receiver: Receiver,
) -> None:
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "created", {})
        hooks.tell("job", receiver.url, "started", {})
        for step in range(50):
            hooks.tell("job", receiver.url, "progress", {"step": step})
        await receiver.wait(3)
        for step in range(50, 100):
            hooks.tell("job", receiver.url, "progress", {"step": step})
        await receiver.wait(4)
        hooks.tell("job", receiver.url, "progress", {"step": 100})
        hooks.tell("job", receiver.url, "finished", {})
        hooks.tell("job", receiver.url, "progress", {"step": 101})
        await receiver.wait(5)
        await asyncio.sleep(0.6)
        assert not hooks._held
    assert receiver.types() == ["created", "started", "progress", "progress", "finished"]
    first, second = receiver.hooks[2:4]
    assert [first.said["job"]["step"], second.said["job"]["step"]] == [49, 99]
    assert second.when - first.when > 0.4
    assert receiver.hooks[4].when - second.when < 0.4, "finished waits for no throttle"


async def test_progress_after_a_quiet_while_is_throttled_too(receiver: Receiver) -> None:
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "progress", {})
        await receiver.wait(1)
        await asyncio.sleep(0.1)
        hooks.tell("job", receiver.url, "progress", {})
        await receiver.wait(2)
    assert receiver.hooks[1].when - receiver.hooks[0].when > 0.4


async def test_a_failed_created_is_not_overtaken(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(503 if len(receiver.hooks) < 4 else 200)
    async with webhooks(receiver) as hooks:
        for kind in ("created", "started", "progress"):
            hooks.tell("job", receiver.url, kind, {})
        await asyncio.sleep(0.05)
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(6)
        await asyncio.sleep(0.1)
    assert receiver.types() == ["created"] * 4 + ["started", "finished"]


# -- trying again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503, 599])
async def test_what_may_pass_is_tried_again_under_the_same_id(
    receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda _: Answer(status if len(receiver.hooks) < 3 else 204)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(3)
        await asyncio.sleep(0.2)
    assert len(receiver.hooks) == 3
    assert len({hook.headers["webhook-id"] for hook in receiver.hooks}) == 1
    assert len({hook.body for hook in receiver.hooks}) == 1
    waits = [b.when - a.when for a, b in zip(receiver.hooks, receiver.hooks[1:], strict=False)]
    assert waits[0] > 0.014
    assert waits[1] > 0.029


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 301, 302, 307, 308])
async def test_a_refusal_or_a_redirect_ends_it(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda hook: (
        Answer(status, {"location": receiver.url}) if "created" in str(hook.said) else Answer()
    )
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "created", {})
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(2)
        await asyncio.sleep(0.15)
    assert receiver.types() == ["created", "finished"]


async def test_it_ends_after_five_attempts(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda _: Answer(500)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "finished", {"prompt": "a secret wish"})
        await receiver.wait(5)
        await asyncio.sleep(0.3)
        assert not hooks._lines
        assert not hooks._held
    assert len(receiver.hooks) == 5
    assert "given up after 5: HTTP 500" in caplog.text


async def test_progress_is_not_tried_again(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(500)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "progress", {})
        await receiver.wait(1)
        await asyncio.sleep(0.2)
    assert len(receiver.hooks) == 1


async def test_a_receiver_that_hangs_up_or_is_slow_is_tried_again(receiver: Receiver) -> None:
    answers = [Answer(hang_up=True), Answer(after=3.0), Answer()]
    receiver.answer = lambda _: answers[len(receiver.hooks) - 1]
    async with webhooks(receiver, timeout=0.3) as hooks:
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(3, seconds=2.5)


async def test_a_receiver_that_asks_for_time_gets_it(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(
        429 if len(receiver.hooks) == 1 else 200, {"retry-after": "1"}
    )
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "finished", {})
        first, second = await receiver.wait(2)
    assert second.when - first.when > 0.95


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("", 0),
        ("17", 17),
        ("86400", 300),
        ("9" * 400, 300),
        ("-5", 0),
        ("soon", 0),
        ("²", 0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 29.75),
        ("Sun, 22 Nov 2020 12:00:30 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
    ],
)
def test_retry_after_is_read_and_bounded(given: str, seconds: float) -> None:
    assert _retry_after(given, NOW) == seconds


# -- bad receivers ---------------------------------------------------------------------------------


async def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(body=b"x" * 65536, endless=True)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "created", {})
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(2, seconds=3)
    assert receiver.types() == ["created", "finished"]
    assert receiver.sent < 32 << 20, "what the sockets' buffers take"


async def test_a_slow_host_holds_nobody_else_and_gets_few_at_once(receiver: Receiver) -> None:
    async with receiving() as slow:
        slow.answer = lambda _: Answer(after=1.5)
        hosts = (f"http://{receiver.address}", f"http://localhost:{slow.port}")
        async with webhooks(hosts=hosts) as hooks:
            for number in range(20):
                url = f"http://localhost:{slow.port}/"
                hooks.tell(f"slow {number}", url, "finished", {})
            await slow.wait(4)
            for number in range(20):
                hooks.tell(f"quick {number}", receiver.url, "finished", {})
            await receiver.wait(20, seconds=1.0)
            assert slow.most_at_once == 4


async def test_all_hosts_together_get_no_more_than_allowed(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(after=0.1)
    async with webhooks(receiver, at_once=3, per_host=9) as hooks:
        for number in range(9):
            hooks.tell(str(number), receiver.url, "finished", {})
        await receiver.wait(9)
    assert receiver.most_at_once == 3


async def test_a_dead_host_is_given_up_without_its_path_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        port = dead.getsockname()[1]
        async with webhooks(hosts=(f"http://127.0.0.1:{port}",)) as hooks:
            hooks.tell("job", f"http://127.0.0.1:{port}/?token=hush", "finished", {"a": "wish"})
            async with asyncio.timeout(5):
                while hooks._lines:
                    await asyncio.sleep(0.01)
    assert "job.finished of job job to 127.0.0.1 is given up after 5: ConnectError" in caplog.text
    assert "hush" not in caplog.text
    assert "wish" not in caplog.text


# -- room ------------------------------------------------------------------------------------------


async def test_when_too_much_waits_newcomers_are_refused_but_finished_is_kept(
    receiver: Receiver,
) -> None:
    receiver.answer = lambda _: Answer(after=0.3)
    async with receiving() as other:
        hosts = (f"http://{receiver.address}", f"http://localhost:{other.port}")
        async with webhooks(hosts=hosts, room=400_000, per_host=1) as hooks:
            for number in range(2):
                hooks.check(receiver.url)
                hooks.tell(str(number), receiver.url, "created", {"prompt": "x" * 41_000})
            with pytest.raises(QueueFull):
                hooks.check(receiver.url)
            hooks.check(f"http://localhost:{other.port}/")
            hooks.tell("late", receiver.url, "started", {})
            hooks.tell("late", receiver.url, "progress", {})
            hooks.tell("late", receiver.url, "finished", {})
            await receiver.wait(3)
            async with asyncio.timeout(5):
                while hooks._held:
                    await asyncio.sleep(0.01)
            hooks.check(receiver.url)
    assert Counter(receiver.types()) == {"created": 2, "finished": 1}


async def test_nothing_is_kept_of_jobs_that_are_done_with(receiver: Receiver) -> None:
    async with webhooks(receiver, interval=0.05) as hooks:
        for number in range(30):
            for kind in ("created", "started", "progress", "finished"):
                hooks.tell(str(number), receiver.url, kind, {})
        await receiver.wait(90)
        await asyncio.sleep(0.2)
        assert not hooks._lines
        assert not hooks._tasks
        assert not hooks._held
        assert not hooks._host_slots


# -- the way out -----------------------------------------------------------------------------------


async def test_tell_never_raises(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    async with webhooks(receiver) as hooks:
        hooks.tell("job", "https://elsewhere.example/?token=hush", "finished", {})
        hooks.tell("job", "no url", "finished", {})
        hooks.tell("job", receiver.url, "finished", {"a thing": object()})
        hooks.tell("job", receiver.url, "finished", {"well": True})
        await receiver.wait(1)
    hooks.tell("job", receiver.url, "finished", {})
    assert caplog.text.count("is not sent") == 3
    assert "does not allow webhooks to this host" in caplog.text
    assert "hush" not in caplog.text


async def test_closing_delivers_what_it_can(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(503 if len(receiver.hooks) == 1 else 200, after=0.1)
    async with webhooks(receiver, backoff=(60.0,)) as hooks:
        hooks.tell("job", receiver.url, "created", {})
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(1)
        await asyncio.sleep(0.3)
        await hooks.close(5)
    assert receiver.types() == ["created", "created", "finished"]


async def test_closing_ends_in_time(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.answer = lambda _: Answer(after=30)
    async with webhooks(receiver) as hooks:
        hooks.tell("job", receiver.url, "created", {})
        hooks.tell("job", receiver.url, "finished", {})
        await receiver.wait(1)
        async with asyncio.timeout(2):
            await hooks.close(0.2)
        hooks.tell("late", receiver.url, "finished", {})
        assert not hooks._lines
    assert "2 webhooks were not delivered" in caplog.text


# -- TLS, and names that change --------------------------------------------------------------------


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server of that name, and for clients that trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + pem
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=pem.decode())


@pytest.mark.parametrize(("name", "arrives"), [("hooks.internal", True), ("evil.internal", False)])
async def test_tls_is_verified_against_the_name_at_the_checked_address(
    tmp_path: Path, name: str, arrives: bool
) -> None:
    server, client = certificate(tmp_path, name)
    asked: list[str] = []

    async def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with receiving(server) as receiver:
        made = policy(hosts=("hooks.internal",), backoff=())
        hooks = Webhooks(made, resolve=resolve, tls=client)
        hooks.tell("job", f"https://hooks.internal:{receiver.port}/x", "finished", {})
        async with asyncio.timeout(5):
            while hooks._lines:
                await asyncio.sleep(0.01)
        await hooks.close(0)
    assert asked == ["hooks.internal"]
    assert receiver.server_names == ["hooks.internal"]
    assert [hook.headers["host"] for hook in receiver.hooks] == (
        [f"hooks.internal:{receiver.port}"] if arrives else []
    )


async def test_the_next_address_is_tried_when_one_is_dead(receiver: Receiver) -> None:
    async def resolve(_: str, __: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]  # the receiver listens at the second

    hooks = Webhooks(policy(hosts=("http://hooks.internal",), backoff=()), resolve=resolve)
    hooks.tell("job", f"http://hooks.internal:{receiver.port}/", "finished", {})
    await receiver.wait(1)
    await hooks.close(0)


async def test_the_environments_proxy_is_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.address}")
        async with webhooks(receiver) as hooks:
            hooks.tell("job", receiver.url, "finished", {})
            await receiver.wait(1)
        assert not proxy.hooks


async def test_no_hosts_means_no_webhooks() -> None:
    hooks = Webhooks(WebhookPolicy())
    with pytest.raises(InvalidRequest, match="operator has not allowed any host") as caught:
        hooks.check("https://example.com/")
    assert caught.value.param == "webhook"
    await hooks.close(0)
