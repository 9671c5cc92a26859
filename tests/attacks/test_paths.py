"""Addresses and names that try to lead out of the store."""

from __future__ import annotations

import pytest

from tests.attacks.conftest import House, assert_clean, named, raw

NAMES = {
    "dots": "../../../../etc/passwd",
    "escaped dots": "..%2f..%2f..%2fetc%2fpasswd",
    "twice escaped dots": "..%252f..%252fetc%252fpasswd",
    "backslashes": "..%5c..%5cetc%5cpasswd",
    "dots in UTF-8, too long": "%c0%ae%c0%ae%c0%af" * 3 + "etc%c0%afpasswd",
    "an absolute path": "%2fetc%2fpasswd",
    "a NUL": "x%00.png",
    "a NUL before an ending": "..%2f..%2feasel.db%00.png",
    "the database": "..%2feasel.db",
    "the key of the links": "..%2flinks.key",
    "a URL": "file:%2f%2f%2fetc%2fpasswd",
    "a home": "~root%2f.ssh%2fid_rsa",
    "a newline": "x%0d%0aSet-Cookie:%20a=b",
    "an escape": "%1b[31mred",
    "SQL": "x'%20OR%20'1'='1",
    "SQL that ends it": "x';DROP%20TABLE%20jobs;--",
    "a wildcard": "%25",
    "letters beyond ASCII": "%e2%80%a8%f0%9f%8e%a8",
    "no UTF-8": "%ff%fe",
    "very long": "a" * 20_000,
    "a template": "%7b%7b7*7%7d%7d",
    "a format": "%25s%25n%25x",
    "a mark of its own": ".owner",
}
ROUTES = {
    "picture": "/images/{}",
    "thumbnail": "/images/{}/thumbnail",
    "job": "/jobs/{}",
    "events": "/jobs/{}/events",
    "model": "/v1/models/{}",
    "files": "/models/{}/status",
}
CASES = {
    f"{route} {name}": (path, text)
    for route, path in ROUTES.items()
    for name, text in NAMES.items()
}


@pytest.mark.parametrize(("path", "text"), **named(CASES))
def test_no_name_leads_out(keyed: House, path: str, text: str) -> None:
    head = f"GET {path.format(text)} HTTP/1.1\r\nHost: localhost\r\n"
    login = f"Authorization: Bearer {keyed.keys['chief']}\r\nConnection: close\r\n\r\n"
    status, answer = raw(keyed.gateway, (head + login).encode())
    assert status in (400, 404), answer
    assert "root:" not in answer
    assert "SQLite format" not in answer
    assert "Set-Cookie" not in answer
    assert "7*7" not in answer
    assert "49" not in answer.rpartition("\r\n\r\n")[2]
    assert_clean(answer, keyed.secrets)


@pytest.mark.parametrize(
    "name", ["../../x.png", "x\0.png", "/etc/passwd", "a" * 3000, "\u202egnp.x"]
)
def test_names_of_uploads_are_not_used(keyed: House, name: str) -> None:
    folder = keyed.gateway.log.parent
    before = {path.name for path in folder.rglob("*")}
    with keyed.client("ann") as client:
        answer = client.post(
            "/v1/images/edits", files={"image": (name, b"no picture")}, data={"prompt": "x"}
        )
    assert answer.status_code == 400
    after = {path.name for path in folder.rglob("*")}
    assert {path for path in after - before if not path.startswith("easel.db")} == set()
