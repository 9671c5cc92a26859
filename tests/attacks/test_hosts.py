"""Names that lead here and are not ours: a page that uses one must get nothing."""

from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.api._gate import Hosts, hosts_of, name_in
from tests.attacks.conftest import named, raw
from tests.gateway import Gateway

REBOUND = {
    "a name of elsewhere": "evil.example",
    "a name of elsewhere with our port": "evil.example:PORT",
    "ours as a label of theirs": "localhost.evil.example",
    "our address as a label of theirs": "127.0.0.1.evil.example",
    "theirs behind ours": "localhost:PORT.evil.example",
    "theirs with ours as user": "localhost@evil.example",
    "ours with a user": "user:word@localhost",
    "text behind an address in brackets": "[::1]evil.example",
    "text before an address in brackets": "evil[::1]",
    "an open bracket": "[::1",
    "no brackets": "::1",
    "brackets around a name": "[localhost]",
    "brackets around an IPv4 address": "[127.0.0.1]",
    "a zone": "[fe80::1%25lo]",
    "a port that is none": "localhost:evil",
    "a port below zero": "localhost:-1",
    "a port too large": "localhost:99999",
    "a port of many digits": "localhost:" + "9" * 400,
    "two ports": "localhost:PORT:80",
    "empty": "",
    "a port alone": ":PORT",
    "any address": "0.0.0.0:PORT",
    "any address, IPv6": "[::]:PORT",
    "our address as one number": "2130706433",
    "our address in hexadecimal": "0x7f000001",
    "our address in octal": "0177.0.0.1",
    "our address, shortened": "127.1",
    "a path": "localhost/../evil",
    "a fragment": "evil.example#localhost",
    "a star": "*",
    "an underline of IDNA": "xn--lcalhost-54a",
    "letters that look alike": "l\xf6calhost",
    "a percent sign": "localhost%00",
    "a comma": "localhost,evil.example",
    "a space": "localhost evil.example",
    "a tab": "localhost\tevil.example",
    "very long": "a" * 5000,
}


@pytest.mark.parametrize("host", **named(REBOUND))
def test_a_foreign_name_gets_nothing(fake_gateway: Gateway, host: str) -> None:
    given = host.replace("PORT", str(fake_gateway.port)).encode("latin-1")
    status, text = raw(fake_gateway, b"GET /v1/models HTTP/1.1\r\nHost: " + given + b"\r\n\r\n")
    assert status in (400, 403), text
    assert '"fake"' not in text


HEADS = {
    "two names": "Host: localhost\r\nHost: evil.example\r\n",
    "two names, the other way": "Host: evil.example\r\nHost: localhost\r\n",
    "a folded line": "Host: localhost\r\n evil.example\r\n",
    "a space before the colon": "Host : localhost\r\n",
}


@pytest.mark.parametrize("head", **named(HEADS))
def test_odd_heads_get_nothing(fake_gateway: Gateway, head: str) -> None:
    status, text = raw(fake_gateway, f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode())
    assert status in (400, 403), text
    assert '"fake"' not in text


def test_no_name_at_all_gets_nothing(fake_gateway: Gateway) -> None:
    for version in ("1.0", "1.1"):
        status, text = raw(fake_gateway, f"GET /v1/models HTTP/{version}\r\n\r\n".encode())
        assert status in (400, 403), text


def test_a_socket_under_a_foreign_name_is_not_opened(fake_gateway: Gateway) -> None:
    address = f"ws://127.0.0.1:{fake_gateway.port}/jobs/x/ws"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, additional_headers={"Host": "evil.example"}).close()
    assert refused.value.response.status_code in (400, 403)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:PORT", "localhost.", "127.0.0.1:PORT", "[::1]:PORT", "192.0.2.7"],
)
def test_our_own_names_are_good(fake_gateway: Gateway, host: str) -> None:
    given = host.replace("PORT", str(fake_gateway.port))
    status, _ = raw(fake_gateway, f"GET /v1/models HTTP/1.1\r\nHost: {given}\r\n\r\n".encode())
    assert status == 200


def test_the_names_of_the_settings() -> None:
    some = Hosts(["easel.example", "*.example.org"])
    assert some.allows("Easel.Example:443")
    assert some.allows("a.b.example.org")
    assert not some.allows("example.org")
    assert not some.allows("badexample.org")
    assert not some.allows("localhost")
    assert Hosts(["*"]).allows("whatever:80")
    assert not Hosts(["*"]).allows("what ever")


def test_which_names_are_good_where_none_are_given() -> None:
    assert not hosts_of([], keyless=True).allows("easel.example")
    assert hosts_of([], keyless=False).allows("easel.example")
    assert hosts_of(["easel.example"], keyless=True).allows("localhost")
    assert not hosts_of(["easel.example"], keyless=False).allows("evil.example")


def test_how_names_are_read() -> None:
    assert name_in("[0:0:0:0:0:0:0:1]:80") == "::1"
    assert name_in("A.b:1") == "a.b"
    assert name_in(None) is None
