"""What is no key lets nobody in, wherever it stands; and a key lets nobody in where it may not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path

import httpx
import pytest
from litestar.handlers import HTTPRouteHandler
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.main import build, create_app
from app.settings import load_settings
from app.store import keys as module
from app.store.links import Links
from tests.attacks.conftest import House, named, raw
from tests.conftest import CARDS
from tests.test_schema import PUBLIC, STATUSES

RIGHT = "KEY"
BAD = {
    "nothing": "",
    "a dummy": "Authorization: Bearer none",
    "an empty one": "Authorization: Bearer ",
    "only the word": "Authorization: Bearer",
    "its id alone": "Authorization: Bearer ID",
    "its beginning": "Authorization: Bearer BEGINNING",
    "its last letter changed": "Authorization: Bearer CHANGED",
    "the secret of another": "Authorization: Bearer SWAPPED",
    "in capitals": "Authorization: Bearer CAPITALS",
    "its digest": "Authorization: Bearer DIGEST",
    "with more behind it": "Authorization: Bearer KEYx",
    "twice": "Authorization: Bearer KEY KEY",
    "two keys": "Authorization: Bearer KEY\r\nAuthorization: Bearer KEY",
    "in quotes": 'Authorization: Bearer "KEY"',
    "under another word": "Authorization: Token KEY",
    "without a word": "Authorization: KEY",
    "as Basic, not encoded": "Authorization: Basic KEY",
    "as Basic of nothing": "Authorization: Basic Og==",
    "as Basic of bytes": "Authorization: Basic //79",
    "revoked": "Authorization: Bearer REVOKED",
    "revoked, the other way": "X-Api-Key: REVOKED",
    "two of the other way": "X-Api-Key: KEY\r\nX-Api-Key: KEY",
    "as a cookie": "Cookie: api_key=KEY; Authorization=Bearer KEY",
    "under the name of another service": "X-Goog-Api-Key: KEY",
    "SQL": "Authorization: Bearer ' OR '1'='1",
    "a wildcard": "Authorization: Bearer easel-%-%",
    "very long": "Authorization: Bearer " + "a" * 60_000,
    "beyond ASCII": "Authorization: Bearer \xe9\xff",
    "a pass that was made up": "Authorization: Bearer easel-local-99999999999-AAAA",
    "a pass that has expired": "Authorization: Bearer EXPIRED",
    "a pass of another folder": "Authorization: Bearer FOREIGN",
    "the signature of a picture": "Authorization: Bearer PICTURE",
    "a user of a trusted proxy": "X-OpenWebUI-User-Id: ann",
    "a friend of ours": "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1",
    "another address": "X-Original-URL: /health\r\nX-Rewrite-URL: /health",
    "another method": "X-HTTP-Method-Override: OPTIONS",
}


def filled(keyed: House, text: str, folder: Path) -> str:
    key, other = keyed.keys["ann"], keyed.keys["bob"]
    head = key.rpartition("-")[0]
    links = Links.open(keyed.gateway.log.parent)
    past = Links.open(keyed.gateway.log.parent, clock=lambda: time.time() - 300)
    end = int(time.time()) + 60
    for name, value in {
        "KEYx": f"{key}x",
        "KEY": key,
        "ID": head,
        "BEGINNING": key[:-1],
        "CHANGED": key[:-1] + ("0" if key[-1] != "0" else "1"),
        "SWAPPED": f"{head}-{other.rpartition('-')[2]}",
        "CAPITALS": key.upper(),
        "DIGEST": hashlib.sha256(key.encode()).hexdigest(),
        "REVOKED": keyed.keys["gone"],
        "EXPIRED": past.local_pass(),
        "FOREIGN": Links.open(folder).local_pass(),
        "PICTURE": f"easel-local-{end}-{links.sign('01M7YSY1HJM9W291ATB4P09PP9', end)}",
    }.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize("head", **named(BAD))
def test_what_is_no_key_lets_nobody_in(keyed: House, head: str, tmp_path: Path) -> None:
    given = filled(keyed, head, tmp_path)
    for line in ("GET /v1/models", "GET /jobs", "POST /jobs/x/replay", "GET /keys"):
        request = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{given}\r\n\r\n"
        status, text = raw(
            keyed.gateway, request.replace("\r\n\r\n\r\n", "\r\n\r\n").encode("latin-1")
        )
        assert status in (400, 401), (line, text)
        if status == 401:
            assert '"invalid_api_key"' in text
            assert "www-authenticate: bearer" in text.lower()


@pytest.mark.parametrize(
    "name", ["key", "api_key", "apikey", "access_token", "token", "authorization"]
)
def test_a_key_in_the_address_lets_nobody_in(keyed: House, name: str) -> None:
    with keyed.client() as client:
        for value in (keyed.keys["ann"], f"Bearer {keyed.keys['ann']}"):
            assert client.get("/jobs", params={name: value}).status_code == 401


def test_the_ways_that_a_key_may_come(keyed: House) -> None:
    key = keyed.keys["ann"]
    word, name = (base64.b64encode(text.encode()).decode() for text in (f"any:{key}", f"{key}:"))
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"x-api-key": key},
        {"authorization": "Bearer", "x-api-key": key},
        {"authorization": f"Basic {word}"},
        {"authorization": f"Basic {name}"},
    ):
        assert httpx.get(f"{keyed.gateway.url}/v1/models", headers=headers).status_code == 200


MAY_NOT = {
    "generate pulls": ("ann", "POST", "/models/fake/pull"),
    "generate removes files": ("ann", "DELETE", "/models/fake/files"),
    "generate loads": ("ann", "POST", "/v1/load-model?model_name=fake"),
    "generate loads one model": ("ann", "POST", "/models/fake/load"),
    "generate unloads": ("ann", "POST", "/models/fake/unload"),
    "generate lists keys": ("ann", "GET", "/keys"),
    "generate revokes": ("ann", "DELETE", "/keys/000000000000"),
    "models draws": ("fetcher", "POST", "/jobs"),
    "models draws elsewhere": ("fetcher", "POST", "/generate"),
    "models sees jobs": ("fetcher", "GET", "/jobs"),
    "models sees pictures": ("fetcher", "GET", "/images/x"),
    "models sees statistics": ("fetcher", "GET", "/stats"),
    "models lists keys": ("fetcher", "GET", "/keys"),
    "models interrupts": ("fetcher", "POST", "/sdapi/v1/interrupt"),
}


@pytest.mark.parametrize(("who", "method", "path"), **named(MAY_NOT))
def test_a_key_may_only_what_its_scopes_say(keyed: House, who: str, method: str, path: str) -> None:
    with keyed.client(who) as client:
        answer = client.request(method, path, json={"prompt": "x"} if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


def test_a_key_cannot_make_a_better_one(keyed: House) -> None:
    body = {"name": "mine", "scopes": ["admin"]}
    for who in ("ann", "fetcher"):
        with keyed.client(who) as client:
            assert client.post("/keys", json=body).status_code == 403


def test_a_socket_needs_a_key(keyed: House) -> None:
    address = f"ws://127.0.0.1:{keyed.gateway.port}/jobs/x/ws"
    for headers in ({}, {"Authorization": "Bearer none"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(address, additional_headers=headers).close()
        assert refused.value.response.status_code == 403


def test_every_route_but_a_few_asks_for_a_key(keyed: House) -> None:
    with keyed.client() as client:
        for method, path in [*STATUSES, ("GET", "/schema"), ("GET", "/schema/openapi.json")]:
            for address in {path, f"{path}/" if path != "/" else path}:
                at = address.replace("{", "").replace("}", "")
                status = client.request(method, at).status_code
                expected = 200 if (method, path) in PUBLIC else 401
                assert status == expected or (address != path and status == 404), (method, at)


def test_every_route_says_whom_it_lets_in() -> None:
    given = load_settings(models_dir=CARDS, default_model="fake", preload=(), devices=("fake",))
    silent = []
    for route in create_app(given, build(given)).routes:
        handlers = getattr(route, "route_handlers", None) or [route.route_handler]  # type: ignore[union-attr]
        for handler in handlers:
            if isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}:
                continue
            if handler.opt.get("access") is None:
                silent.append(route.path)
    assert silent == []


def test_wrong_keys_are_compared_alike(monkeypatch: pytest.MonkeyPatch, keyed: House) -> None:
    """One comparison of digests of one length for every key, known or not, in constant time."""
    compared: list[tuple[int, int]] = []
    original = hmac.compare_digest

    def counted(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return original(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    ring = module.KeyRing.__new__(module.KeyRing)
    ring._fresh, ring._known = True, {}

    class Exclusive:
        shared = False

    ring._database = Exclusive()  # type: ignore[assignment]
    import asyncio

    for given in ("", "none", keyed.keys["ann"], keyed.keys["ann"][:-1], "\udc80"):
        assert asyncio.run(ring.find(given)) is None
    assert compared == [(64, 64)] * 5
