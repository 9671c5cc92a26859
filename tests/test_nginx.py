"""The files of `nginx/`, run by a real nginx."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from app.api._proxy import nginx_routes
from app.main import build, create_app
from app.settings import load_settings
from bench.nginx import FILES, nginx_before, program, set_up
from tests.conftest import fake_settings
from tests.gateway import Gateway, free_port, running_gateway


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = {**fake_settings(), "EASEL_MAX_QUEUE": "50", "EASEL_MAX_UPLOAD": "64000000"}
    with running_gateway(tmp_path_factory.mktemp("data"), settings) as started:
        yield started


@pytest.fixture(scope="module")
def url(lab: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nginx_before(lab.port, tmp_path_factory.mktemp("nginx")) as started:
        yield started


def test_nginx_accepts_the_files(tmp_path: Path) -> None:
    subject = "/CN=images.example.com"
    keys = ["-keyout", str(tmp_path / "privkey.pem"), "-out", str(tmp_path / "fullchain.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", subject, *keys]
    subprocess.run(make, check=True, capture_output=True)
    for site in ("easel.conf", "easel-tls.conf"):
        main = set_up(tmp_path, 1, free_port(), site)
        checked = subprocess.run(
            [program(), "-t", "-p", str(tmp_path), "-c", str(main)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr


def test_the_routes_are_those_of_this_version(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    app = create_app(settings, build(settings))
    told = nginx_routes(app)
    assert (FILES / "easel" / "routes.conf").read_text() == told, "run `easel nginx` again"
    streams = re.findall(r"location (?:= |~ )(\S+) \{\n    include easel/stream.conf;", told)
    for path in ("/generate/stream", "/v1/images/edits", "/v1/progress-stream", "/jobs/events"):
        assert path in streams
    assert "^/jobs/[^/]+/events$" in streams
    assert "^/jobs/[^/]+/ws$" in streams


def test_every_stream_comes_event_by_event(url: str) -> None:
    """Steps of a picture that takes a second reach the client over that second, and not at its end."""
    routes = re.findall(
        r"location = (\S+) \{\n    include", (FILES / "easel/routes.conf").read_text()
    )
    posted = [path for path in routes if path.endswith(("/stream", "generations"))]
    assert len(posted) > 6
    body = {
        "prompt": "x",
        "model": "lab/slow",
        "steps": 20,
        "stream": True,
        "stream_progress": True,
    }
    with httpx.Client(base_url=url, timeout=60) as client:
        for path in posted:
            arrivals = []
            wanted = dict(body)
            if path.startswith(("/generate/flux", "/generate/stable")):
                continue  # no model of these families here
            with client.stream("POST", path, json=wanted) as answer:
                assert answer.status_code == 200, (path, answer.read())
                for piece in answer.iter_raw():
                    if b"step" in piece:
                        arrivals.append(time.monotonic())
            assert len(arrivals) > 5, path
            assert arrivals[-1] - arrivals[0] > 0.3, path


def test_events_of_jobs_and_of_everybody_come_at_once(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        for path in ("/v1/progress-stream", "/jobs/events"):
            with client.stream("GET", path) as answer:
                lines = answer.iter_lines()
                threading.Timer(
                    0.2, lambda: httpx.post(f"{url}/jobs", json={"prompt": "z"})
                ).start()
                begun = time.monotonic()
                assert any(line.startswith("data:") for line in lines)
                assert time.monotonic() - begun < 10
        job = client.post("/jobs", json={"prompt": "x", "model": "lab/slow", "steps": 20}).json()
    websocket = f"{url.replace('http', 'ws')}/jobs/{job['id']}/ws"
    with connect(websocket) as socket:
        times = [time.monotonic() for message in socket if "progress" in str(message)]
    assert times[-1] - times[0] > 0.3


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"TRACE / HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (
            b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"a" * 70_000 + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000001\r\n\r\n",
            413,
            "body_too_large",
        ),
        (
            b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-length: 64000001\r\n\r\n",
            413,
            "body_too_large",
        ),
        (b"GET /_easel/400 HTTP/1.1\r\nhost: x\r\n\r\n", 404, "not_found"),
        (
            b"POST /jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: zip\r\n\r\n",
            501,
            "not_implemented",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_what_nginx_refuses_has_the_envelope(
    url: str, request_bytes: bytes, status: int, code: str
) -> None:
    answer = raw(url, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, answer
    error = json.loads(body)["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert b"x-request-id: " in head.lower()


def test_an_upload_as_large_as_the_gateway_takes_passes(url: str) -> None:
    files = {"image": ("x.png", b"x" * 30_000_000, "image/png")}
    answer = httpx.post(f"{url}/v1/images/edits", data={"prompt": "x"}, files=files, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "image"  # the gateway says so: it is no picture


def test_the_gateways_own_errors_pass_as_they_are(url: str) -> None:
    answer = httpx.get(f"{url}/jobs/nope", headers={"x-request-id": "mine-1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["x-request-id"] == "mine-1"


def test_nobody_at_home(tmp_path: Path) -> None:
    with nginx_before(free_port(), tmp_path) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "server_unreachable")
    assert 1 <= int(answer.headers["retry-after"]) <= 59


def test_a_post_is_never_sent_twice(tmp_path: Path) -> None:
    """A gateway that reads a request and dies must not be given it again: that would draw twice."""
    with Deaf() as deaf, nginx_before(deaf.port, tmp_path) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "x"})
        assert answer.status_code == 502
        assert len(deaf.requests) == 1
        httpx.post(f"{url}/jobs", json={"prompt": "x"})
        assert len(deaf.requests) == 2


def test_no_other_protocol_passes(url: str) -> None:
    """An upgrade to h2c would let requests pass that nginx does not see."""
    answer = raw(
        url,
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade, http2-settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200")


def test_one_address_has_a_bounded_number_of_connections(lab: Gateway, tmp_path: Path) -> None:
    limits = {"limit_conn easel_clients 256": "limit_conn easel_clients 2"}
    with nginx_before(lab.port, tmp_path, **limits) as url, httpx.Client(timeout=60) as client:
        body: dict[str, Any] = {"prompt": "x", "model": "lab/slow", "steps": 100}
        with (
            client.stream("POST", f"{url}/generate/stream", json=body) as one,
            client.stream("POST", f"{url}/generate/stream", json=body) as two,
        ):
            assert (one.status_code, two.status_code) == (200, 200)
            third = httpx.get(f"{url}/health")
    assert (third.status_code, third.json()["error"]["code"]) == (429, "too_many_connections")
    assert third.headers["retry-after"] == "1"


def raw(url: str, sent: bytes) -> bytes:
    """What comes back until nginx closes, or nothing comes for a second."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(sent)
        sock.settimeout(1)
        answer = b""
        try:
            while piece := sock.recv(65536):
                answer += piece
        except TimeoutError:
            pass
        return answer


class Deaf:
    """Reads a request on every connection, and closes it without a word."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                if read := connection.recv(65536):  # but for the look whether anybody listens
                    self.requests.append(read)

    def __enter__(self) -> Deaf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
