"""How the NATS door finds its broker, shows who it is, and notices that nobody is there."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from app.api import _nats_link
from app.api._door import CannotOpen
from app.api._nats_link import Broker, Link
from app.settings import ConfigurationError, load_settings
from tests.gateway import free_port
from tests.nats_broker import connected, running_broker

PASSWORD = "pass/word@1"
QUOTED = "pass%2Fword%401"
_KIND = "ed25519-nkey"
_NO_FILE_OF_KEYS = Path(__file__).with_name("gateway.py")


@asynccontextmanager
async def linked(broker: Broker) -> AsyncIterator[Link]:
    """A link that answers what is asked on `echo`."""

    async def echo(message: Msg) -> None:
        await link.answer(message.reply, message.data)

    async def welcome(client: Client) -> None:
        await client.subscribe("echo", cb=echo)

    async def farewell() -> None:
        pass

    link = Link(broker, welcome, farewell)
    link.open()
    try:
        yield link
    finally:
        await link.close()


async def until_up(link: Link) -> None:
    deadline = time.monotonic() + 10
    while link.client is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def until_told(caplog: pytest.LogCaptureFixture, words: str) -> None:
    deadline = time.monotonic() + 10
    while words not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        await asyncio.sleep(0.02)


def seed() -> bytes:
    made = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return bytes(made)


async def test_credentials_are_shown_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.api._nats_link")
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    known.write_bytes(seed() + b"\n")
    unknown.write_bytes(seed())
    public = nkeys.from_seed(bytearray(known.read_bytes().strip())).public_key.decode()
    users = f'{{ user: "easel", password: "{PASSWORD}" }}, {{ nkey: "{public}" }}'
    with running_broker(tmp_path / "nats", f"authorization {{ users: [ {users} ] }}") as broker:
        url, place = broker.url, broker.url.partition("//")[2]
        nowhere = f"nats://127.0.0.1:{free_port()}"
        for refused in (
            Broker(servers=(url,)),
            Broker(servers=(f"nats://easel:{QUOTED}x@{place}",)),
            Broker(servers=(url,), nkey_file=unknown),
        ):
            caplog.clear()
            async with linked(refused) as link:
                await until_told(caplog, "it refuses the credentials of this server")
                assert link.client is None
        for good in (
            Broker(servers=(f"nats://easel:{QUOTED}@{place}",)),
            Broker(servers=(nowhere, f"nats://easel:{QUOTED}@{place}")),
            Broker(servers=(url,), nkey_file=known),
        ):
            async with linked(good) as link:
                await until_up(link)
    for secret in (PASSWORD, QUOTED, known.read_text().strip(), unknown.read_text()):
        assert secret not in caplog.text


async def test_a_file_of_credentials_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an operator gives them out: signed by the account, which is signed by the operator."""
    operator, account, system = (
        _pair(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, *2 * (nkeys.PREFIX_BYTE_ACCOUNT,))
    )
    user, stranger = _pair(nkeys.PREFIX_BYTE_USER), _pair(nkeys.PREFIX_BYTE_USER)
    names = [pair.public_key.decode() for pair in (account, system)]
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    claims = {"type": "account", "limits": {**limits, "wildcards": True}}
    settings = f"""operator: "{_signed(operator, operator, {"type": "operator"})}"
        resolver: MEMORY
        system_account: {names[1]}
        resolver_preload: {{
            {names[0]}: "{_signed(operator, account, claims)}"
            {names[1]}: "{_signed(operator, system, claims)}"
        }}"""
    with running_broker(tmp_path / "nats", settings) as broker:
        rights = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        for pair, signer, good in ((user, account, True), (stranger, stranger, False)):
            file = tmp_path / "creds"
            file.write_text(
                f"-----BEGIN NATS USER JWT-----\n{_signed(signer, pair, rights)}\n"
                "------END NATS USER JWT------\n"
                f"-----BEGIN USER NKEY SEED-----\n{pair.seed.decode()}\n"
                "------END USER NKEY SEED------\n"
            )
            async with linked(Broker(servers=(broker.url,), creds_file=file)) as link:
                if good:
                    await until_up(link)
                else:
                    await until_told(caplog, "it refuses the credentials of this server")
            assert pair.seed.decode() not in caplog.text


def _pair(kind: int) -> Any:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), kind)))


def _signed(issuer: Any, subject: Any, claims: dict[str, Any]) -> str:
    """A JWT of NATS's own kind."""
    name = subject.public_key.decode()
    said = {"jti": name, "iat": int(time.time()), "iss": issuer.public_key.decode()}
    body = {**said, "name": name, "sub": name, "nats": {"version": 2, **claims}}
    parts = [_unpadded(json.dumps(one).encode()) for one in ({"typ": "JWT", "alg": _KIND}, body)]
    text = ".".join(parts)
    return f"{text}.{_unpadded(issuer.sign(text.encode()))}"


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ({"nkey_file": Path("/nowhere")}, "nats_nkey_file cannot be read"),
        ({"nkey_file": _NO_FILE_OF_KEYS}, "nats_nkey_file cannot be read as the seed of an nkey"),
        ({"creds_file": Path("/nowhere")}, "nats_creds_file cannot be read"),
        ({"creds_file": _NO_FILE_OF_KEYS}, "nats_creds_file holds no JWT"),
        ({"ca_file": Path("/nowhere")}, "nats_ca_file cannot be read as certificates"),
        ({"ca_file": _NO_FILE_OF_KEYS}, "nats_ca_file cannot be read as certificates"),
    ],
)
async def test_files_that_are_of_no_use_are_told_at_once(
    broker: dict[str, Path], words: str
) -> None:
    with pytest.raises(CannotOpen, match=words):
        async with linked(Broker(servers=("nats://127.0.0.1:4222",), **broker)):
            pass


async def test_a_broker_is_known_by_its_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    name = ("-subj", "/CN=nats", "-addext", "subjectAltName=IP:127.0.0.1")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    files = ("-keyout", str(key), "-out", str(certificate))
    command = ("openssl", "req", "-x509", "-nodes", "-days", "2", *curve, *name, *files)
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    settings = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with running_broker(tmp_path / "nats", settings) as broker:
        for url in (broker.url, broker.url.replace("nats:", "tls:")):
            async with linked(Broker(servers=(url,), ca_file=certificate)) as link:
                await until_up(link)
        async with linked(Broker(servers=(broker.url.replace("nats:", "tls:"),))) as link:
            await until_told(caplog, "its certificate cannot be verified")
            assert link.client is None


async def test_a_broker_without_tls_is_not_sent_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody in between who says that there is no TLS: all that he is sent is nothing."""
    sent = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","max_payload":1048576}\r\n')
        sent.extend(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with linked(Broker(servers=(f"tls://easel:{QUOTED}@127.0.0.1:{port}",))):
        await until_told(caplog, "it offers no TLS, and nats_url asks for it")
    server.close()
    await server.wait_closed()
    assert sent == b""


async def test_what_it_does_not_permit_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (
        'authorization { users: [ { user: a, password: b, permissions: { subscribe: "x" } } ] }'
    )
    with running_broker(tmp_path / "nats", settings) as broker:
        async with linked(Broker(servers=(broker.url.replace("//", "//a:b@"),))) as link:
            await until_up(link)
            await until_told(caplog, "it does not permit this server something")
    assert caplog.text.count("does not permit") == 1


async def test_a_broker_that_is_frozen_is_found_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_nats_link, "_PING", 0.2)
    with running_broker(tmp_path / "nats") as broker:
        async with linked(Broker(servers=(broker.url,))) as link:
            await until_up(link)
            broker.signal(signal.SIGSTOP)
            deadline = time.monotonic() + 10
            while link.client is not None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            broker.signal(signal.SIGCONT)
            await until_up(link)


async def test_an_answer_waits_for_who_was_away_with_the_broker(tmp_path: Path) -> None:
    """He comes back two seconds after the link."""
    with running_broker(tmp_path / "nats") as broker:
        async with (
            linked(Broker(servers=(broker.url,))) as link,
            connected(broker, wait=2.0) as client,
        ):
            await until_up(link)
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
            await client.flush()
            broker.kill()
            answering = asyncio.create_task(link.answer(inbox, b"late"))
            await asyncio.sleep(0.3)
            broker.start()
            assert (await answers.next_msg(timeout=10)).data == b"late"
            await asyncio.wait_for(answering, 5)
            # Who does not come back is given up, once all should be there.
            link._late = 0.0
            began = time.monotonic()
            await link.answer("nobody.is.here", b"lost")
            assert time.monotonic() - began < 2


async def test_a_link_that_hears_nothing_takes_no_answer_for_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's reader may end while its connection stands."""
    monkeypatch.setattr(_nats_link, "_PING", 0.5)
    with running_broker(tmp_path / "nats") as broker:
        async with linked(Broker(servers=(broker.url,))) as link, connected(broker) as client:
            await until_up(link)
            assert link.client is not None
            reader = link.client._reading_task
            assert reader is not None
            reader.cancel()
            inbox = client.new_inbox()
            answering = asyncio.create_task(link.answer(inbox, b"heard"))
            await asyncio.sleep(0.2)
            assert not answering.done()
            answers = await client.subscribe(inbox)
            await client.flush()
            assert (await answers.next_msg(timeout=10)).data == b"heard"
            await asyncio.wait_for(answering, 10)


def test_without_a_server_the_tests_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(pytest.fail.Exception):
        running_broker(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("given", "servers", "at_home"),
    [
        ("", (), True),
        ("nats://localhost:4222, tls://[::1]", ("nats://localhost:4222", "tls://[::1]"), True),
        ('["nats://127.0.0.1", "nats://broker"]', ("nats://127.0.0.1", "nats://broker"), False),
        ("http://broker", None, False),
        ("nats://", None, False),
        ("nats://easel:secret@broker:port", None, False),
        ('["nats://broker"', None, False),
    ],
)
def test_addresses_are_a_list_or_have_commas_between_them(
    monkeypatch: pytest.MonkeyPatch, given: str, servers: tuple[str, ...] | None, at_home: bool
) -> None:
    monkeypatch.setenv("EASEL_NATS_URL", given)
    if servers is None:
        with pytest.raises(ConfigurationError, match="nats_url") as refused:
            load_settings()
        assert "secret" not in str(refused.value)
    else:
        settings = load_settings()
        assert (settings.nats_url, settings.nats_keyless) == (servers, at_home)
