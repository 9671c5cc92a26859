"""Pages of elsewhere that make a browser ask this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.attacks.conftest import named
from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway
from tests.stored import png

FOREIGN = {
    "a page of elsewhere": "http://evil.example",
    "the same over TLS": "https://evil.example",
    "ours as a label of theirs": "http://localhost.evil.example",
    "theirs with ours as user": "http://127.0.0.1:PORT@evil.example",
    "another port of this machine": "http://127.0.0.1:1",
    "another name of this machine": "http://localhost:PORT",
    "no origin in particular": "null",
    "a file": "file://",
    "an extension": "chrome-extension://abcdefghijklmnop",
    "empty": "",
    "a star": "*",
    "ours and a path": "http://127.0.0.1:PORT/",
    "ours without a scheme": "127.0.0.1:PORT",
    "two of them": "http://127.0.0.1:PORT http://evil.example",
    "ours under a scheme of theirs": "evil://127.0.0.1:PORT",
}


def count(client: httpx.Client) -> int:
    return len(client.get("/jobs?limit=1000").json()["jobs"])


@pytest.mark.parametrize("origin", **named(FOREIGN))
def test_a_foreign_page_draws_nothing(fake_gateway: Gateway, origin: str) -> None:
    headers = {"origin": origin.replace("PORT", str(fake_gateway.port))}
    with fake_gateway.client() as client:
        before = count(client)
        answer = client.post("/jobs", json={"prompt": "x"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-request-id"].startswith("req_")
        assert client.get("/v1/models", headers=headers).status_code == 403
        assert count(client) == before


PLAIN = {
    "text": "text/plain",
    "text that claims to be JSON": "text/plain; application/json",
    "a form": "application/x-www-form-urlencoded",
    "a multipart form": "multipart/form-data; boundary=x",
    "nothing": "",
    "JSON in all but name": "application/jsonp",
    "two types": "text/plain, application/json",
}


@pytest.mark.parametrize("kind", **named(PLAIN))
@pytest.mark.parametrize(
    "route",
    [
        "/v1/images/generations",
        "/v1/images/generations/stream",
        "/generate",
        "/jobs",
        "/estimate",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/options",
        "/v1/generate-image",
    ],
)
def test_what_a_page_may_send_without_asking_is_no_json(
    fake_gateway: Gateway, route: str, kind: str
) -> None:
    with fake_gateway.client() as client:
        headers = {"content-type": kind} if kind else {}
        answer = client.post(route, content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 415, answer.text


BODILESS = {
    "replay": ("POST", "/jobs/x/replay"),
    "pull": ("POST", "/models/fake/pull"),
    "load": ("POST", "/v1/load-model?model_name=fake"),
    "load one": ("POST", "/models/fake/load"),
    "unload": ("POST", "/models/fake/unload"),
    "interrupt": ("POST", "/sdapi/v1/interrupt"),
    "cancel": ("DELETE", "/jobs/x"),
    "forget all": ("DELETE", "/jobs?mine=true"),
    "remove files": ("DELETE", "/models/fake/files"),
    "tag": ("PUT", "/jobs/x/tags/y"),
}


@pytest.mark.parametrize(("method", "path"), **named(BODILESS))
def test_what_needs_no_body_is_guarded_as_well(
    fake_gateway: Gateway, method: str, path: str
) -> None:
    with fake_gateway.client() as client:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert client.request(method, path, headers=headers).status_code == 403


def test_a_foreign_form_with_a_picture_draws_nothing(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        answer = client.post(
            "/v1/images/edits",
            files={"image": png()},
            data={"prompt": "x"},
            headers={"origin": "https://evil.example"},
        )
    assert answer.status_code == 403


def test_a_foreign_page_may_not_even_ask_whether_it_may(fake_gateway: Gateway) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with fake_gateway.client() as client:
        answer = client.options("/jobs", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_foreign_page_gets_no_socket(fake_gateway: Gateway, origin: str) -> None:
    address = f"ws://127.0.0.1:{fake_gateway.port}/jobs/x/ws"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, additional_headers={"Origin": origin}).close()
    assert refused.value.response.status_code == 403


def test_our_own_page_may_ask(fake_gateway: Gateway) -> None:
    headers = {"origin": fake_gateway.url, "sec-fetch-site": "same-origin"}
    with fake_gateway.client() as client:
        assert client.post("/estimate", json={"prompt": "x"}, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def open_to_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("data")
    friend = {"EASEL_CORS_ORIGINS": '["https://friend.example"]'}
    with running_gateway(folder, {**fake_settings(), **friend}) as started:
        yield started


def test_a_page_of_the_settings_may_ask_and_read(open_to_one: Gateway) -> None:
    friend = {"origin": "https://friend.example"}
    with open_to_one.client() as client:
        asked = client.options(
            "/jobs",
            headers={
                **friend,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type",
            },
        )
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://friend.example"
        answer = client.post("/jobs", json={"prompt": "x"}, headers=friend)
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        for other in ("https://evil.example", "https://friend.example.evil.example"):
            refused = client.post("/jobs", json={"prompt": "x"}, headers={"origin": other})
            assert refused.status_code == 403
