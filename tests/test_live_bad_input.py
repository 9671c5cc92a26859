"""Whatever comes in: a clear answer in one envelope, no job, and a server that stays well."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest

from tests.gateway import Gateway

ROUTES = ["/v1/images/generations", "/v1/images/generations/stream", "/generate", "/jobs"]

WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "prompt"),
    ({"prompt": "x" * 5000}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": 11}, "n"),
    ({"prompt": "x", "n": "2"}, "n"),
    ({"prompt": "x", "n": 1.5}, "n"),
    ({"prompt": "x", "n": True}, "n"),
    ({"prompt": "x", "size": "banana"}, "size"),
    ({"prompt": "x", "size": "64x64x64"}, "size"),
    ({"prompt": "x", "size": "99999x99999"}, "width"),
    ({"prompt": "x", "size": "0x0"}, "width"),
    ({"prompt": "x", "width": 520}, "width"),
    ({"prompt": "x", "height": -1}, "height"),
    ({"prompt": "x", "width": 10**30}, "width"),
    ({"prompt": "x", "steps": 0}, "num_inference_steps"),
    ({"prompt": "x", "steps": 101}, "num_inference_steps"),
    ({"prompt": "x", "steps": 3, "num_inference_steps": 4}, "num_inference_steps"),
    ({"prompt": "x", "cfg_scale": 99}, "guidance_scale"),
    ({"prompt": "x", "cfg_scale": "lots"}, "cfg_scale"),
    ({"prompt": "x", "cfg_scale": 3, "guidance_scale": 4}, "guidance_scale"),
    ({"prompt": "x", "seed": -2}, "seed"),
    ({"prompt": "x", "seed": 2**32}, "seed"),
    ({"prompt": "x", "sampler": "magic"}, "sampler"),
    ({"prompt": "x", "sampler": "euler", "sampler_name": "ddim"}, "sampler"),
    ({"prompt": "x", "output_format": "gif"}, "output_format"),
    ({"prompt": "x", "output_format": "svg"}, "output_format"),
    ({"prompt": "x", "output_compression": 101}, "output_compression"),
    ({"prompt": "x", "background": "transparent"}, "background"),
    ({"prompt": "x", "negative_prompt": "y" * 5000}, "negative_prompt"),
]


@pytest.mark.parametrize(("body", "param"), WRONG_VALUES)
def test_a_wrong_value_is_named(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    with gateway.client() as client:
        before = len(client.get("/jobs?limit=1000").json()["jobs"])
        for route in ROUTES:
            answer = client.post(route, json=body)
            assert answer.status_code == 400, route
            error = answer.json()["error"]
            assert (error["param"], error["type"]) == (param, "invalid_request_error"), route
            assert error["message"].endswith(".")
            assert answer.headers["x-request-id"]
        assert len(client.get("/jobs?limit=1000").json()["jobs"]) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "x"',
        b'{"prompt": NaN}',
        b'{"prompt": "\xff\xfe"}',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "n": 1e400}',
        b'{"prompt": "x", "seed": 1' + b"0" * 400 + b"}",
    ],
)
def test_bodies_that_are_no_request_are_400(gateway: Gateway, body: bytes) -> None:
    with gateway.client() as client:
        for route in ROUTES:
            answer = client.post(route, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, route
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert not re.search(r'0x[0-9a-f]{6,}|/tmp|Traceback|File "', answer.text)


def test_null_and_empty_optional_fields_count_as_absent(gateway: Gateway) -> None:
    nothing = dict.fromkeys(
        ("model", "n", "size", "seed", "negative_prompt", "user", "quality", "stream", "style")
    )
    body = {"prompt": "x", **nothing, "sampler": "", "background": "", "steps": 2}
    with gateway.client() as client:
        assert client.post("/v1/images/generations", json=body).status_code == 200


def test_unknown_fields_are_ignored(gateway: Gateway) -> None:
    with gateway.client() as client:
        body = {"prompt": "x", "steps": 2, "frobnicate": {"a": [1]}}
        assert client.post("/v1/images/generations", json=body).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_under_another_content_type_is_415(gateway: Gateway, kind: str) -> None:
    with gateway.client() as client:
        headers = {"content-type": kind} if kind else {}
        answer = client.post("/generate", content=b'{"prompt": "x"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_body_too_large_is_refused_by_its_length_alone(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
        )
        answer = sock.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")


def test_a_body_too_large_without_a_length_is_refused_too(gateway: Gateway) -> None:
    with gateway.client() as client:
        answer = client.post(
            "/generate",
            content=(b" " * 100_000 for _ in range(20)),
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 413


def test_wrong_addresses_and_methods_answer_in_the_envelope(gateway: Gateway) -> None:
    with gateway.client() as client:
        for answer, status in (
            (client.get("/nothing/here"), 404),
            (client.get("/v1/images/generations"), 405),
            (client.get("/jobs/none"), 404),
            (client.get("/jobs/none/events"), 404),
            (client.delete("/jobs/none"), 404),
            (client.get("/images/..%2f..%2fetc%2fpasswd"), 404),
            (client.get("/images/01M7YSY1HJM9W291ATB4P09PP9"), 404),
            (client.get("/jobs?limit=0"), 400),
        ):
            assert answer.status_code == status, answer.url
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert answer.headers["x-request-id"].startswith("req_")


def test_request_ids_of_clients_are_kept_when_they_are_plain(gateway: Gateway) -> None:
    with gateway.client() as client:
        kept = client.get("/health", headers={"x-request-id": "abc-1"})
        changed = client.get("/health", headers={"x-request-id": "a b\x7f{"})
    assert kept.headers["x-request-id"] == "abc-1"
    assert changed.headers["x-request-id"].startswith("req_")


def test_a_full_queue_answers_429_with_the_seconds_to_wait(fake_gateway: Gateway) -> None:
    slow = {"prompt": "x", "model": "lab/slow", "steps": 900}
    with fake_gateway.client() as client:
        ids = []
        while (answer := client.post("/jobs", json=slow)).status_code == 202:
            ids.append(answer.json()["id"])
            assert len(ids) < 9
        streamed = client.post("/v1/images/generations", json={"prompt": "x", "stream": True})
        for job in ids:
            client.delete(f"/jobs/{job}")
    for refused in (answer, streamed):
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 59
        assert refused.json()["error"]["code"] == "queue_full"


def test_words_that_an_encoder_has_no_room_for_are_not_in_the_log(gateway: Gateway) -> None:
    with gateway.client() as client:
        body = {"prompt": f"a red circle {'kolibri ' * 150}", "steps": 1}
        assert client.post("/generate", json=body).status_code == 200
    assert "kolibri" not in gateway.log.read_text()


def test_prompts_with_control_characters_and_odd_letters_draw(gateway: Gateway) -> None:
    with gateway.client() as client:
        for prompt in ("\r\n\x1b[31m\u2028", "🟥" * 50, "ا" * 300, "%s%n{}", "../../etc/passwd"):
            answer = client.post("/generate", json={"prompt": prompt, "steps": 1})
            if answer.status_code == 200:
                assert json.loads(answer.text)["parameters"]["prompt"] == prompt
            else:
                assert answer.json()["error"]["param"] == "prompt"
    log = gateway.log.read_text()
    assert "passwd" not in log
    assert "\x1b[31m" not in log
