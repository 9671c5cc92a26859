"""Servers that are not there, go away and come back, want a key, or say what no Easel would."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import fake_settings
from tests.gateway import Gateway, free_port
from tests.shell_house import Easel, at_home, easel, house
from tests.terminal import terminal

__all__ = ["at_home", "easel", "house"]  # fixtures


# -- going away ------------------------------------------------------------------------------------


@contextmanager
def serving(data: Path, port: int) -> Iterator[Gateway]:
    """A server at this port, which is killed in the end."""
    environment = {"EASEL_DATA_DIR": str(data), "EASEL_PORT": str(port)}
    with (data / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            env={**os.environ, **fake_settings(), **environment},
            stdout=log,
            stderr=log,
        )
    try:
        started = Gateway(f"http://127.0.0.1:{port}", process, data / "log.txt")
        started.wait_until_ready()
        yield started
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(240)
def test_a_watch_goes_on_when_the_server_was_killed_and_is_back(tmp_path: Path) -> None:
    port = free_port()
    address = {"EASEL_SERVER": f"http://127.0.0.1:{port}"}
    # Long enough to be seen going on: who watches may call only two seconds after the server came.
    job = {"prompt": "x", "model": "lab/slow", "steps": 150}
    with serving(tmp_path, port) as gateway, ExitStack() as stack:
        job_id = httpx.post(f"{gateway.url}/jobs", json=job).json()["id"]
        script = subprocess.Popen(
            [sys.executable, "-m", "app", "jobs", "watch", job_id, "--json-events"],
            env={**os.environ, **address},
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(script)
        stack.callback(script.kill)
        with (
            terminal("jobs", "watch", job_id, "-o", str(tmp_path / "x.png"), **address) as one,
            terminal("jobs", "watch", **address) as all_of_them,
        ):
            one.wait_for("Generating step")
            all_of_them.wait_for("Generating step")
            gateway.process.kill()
            one.wait_for("The connection is lost")
            all_of_them.wait_for("The connection is lost")
            with serving(tmp_path, port) as again:
                one.wait_for("Generating step")
                assert one.ended() == 0
                assert all_of_them.ended() == 0
                told, _ = script.communicate(timeout=30)
                stored = httpx.get(f"{again.url}/jobs/{job_id}").json()
            assert "x.png  seed" in one.text
            assert all_of_them.text == f"{job_id}  succeeded"
    assert (stored["status"], stored["attempt"]) == ("succeeded", 2)
    *events, last = map(json.loads, told.splitlines())
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["attempt"] for event in events if event["event"] == "started"] == [1, 2]
    assert last["status"] == "succeeded"


def test_a_server_that_is_not_there_is_one_sentence(easel: Easel) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for words in (("generate", "x"), ("jobs", "list"), ("models", "list"), ("stats",)):
        done = easel(*words, "--server", nowhere)
        assert (done.code, done.err) == (1, f"easel: No server answers at {nowhere}."), words
        assert done.out == ""
    for address in ("127.0.0.1:5199", "ftp://x", "http://", "\x1b[2J"):
        done = easel("jobs", "list", "--server", address)
        assert done.code == 2, address
        assert "A server is like http://127.0.0.1:5199" in done.err
        assert "\x1b" not in done.err


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_taken(tmp_path: Path, easel: Easel) -> None:
    with serving(tmp_path, port := free_port()) as gateway:
        own = {"EASEL_DATA_DIR": str(tmp_path), "EASEL_PORT": str(port)}
        made = easel("keys", "create", "anna", "--json", **own).json
        there = {"EASEL_SERVER": gateway.url}
        none = easel("jobs", "list", **there)
        assert none.code == 1
        assert none.err.endswith("needs a key; EASEL_API_KEY holds one.")
        wrong = easel("jobs", "list", "--key", "nonsense", **there)
        assert (wrong.code, "does not take this key" in wrong.err) == (1, True)
        assert "nonsense" not in wrong.err
        good = {**there, "EASEL_API_KEY": made["key"]}
        drawn = easel("generate", "x", "--json", **good).json
        assert drawn["status"] == "succeeded"
        assert [job["id"] for job in easel("jobs", "list", "--json", **good).json] == [drawn["id"]]
        refused = easel("models", "unload", "fake", **good)
        assert (refused.code, "scope models" in refused.err) == (1, True)
        # Who may read the data folder needs none, and sees everybody's.
        mine = easel("jobs", "list", "--json", **own).json
        assert [(job["owner"], job["id"]) for job in mine] == [("anna", drawn["id"])]


# -- nonsense --------------------------------------------------------------------------------------

ENDLESS = "data: " + "x" * 65_536
NOT_THERE = {"error": {"message": "There is nothing at this address.", "code": "not_found"}}
EVIL = "\x1b]0;owned\x07\x1b[2Jboo"


LORA = {"family": "x", "trigger_words": [EVIL], "bytes": 1, "state": "on_disk", "name": EVIL}


class Stranger(http.server.BaseHTTPRequestHandler):
    """Answers what its path says, for jobs of any name."""

    told: dict[str, tuple[int, str, str]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        status, kind, body = self.told.get(path, (404, "text/html", "<h1>Not found</h1>"))
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        with suppress(ConnectionError):  # who has heard enough hangs up
            self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def stranger(told: dict[str, tuple[int, str, str]]) -> Iterator[str]:
    kind = type("This", (Stranger,), {"told": told})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def answer(told: Any, status: int = 200) -> tuple[int, str, str]:
    return status, "application/json", told if isinstance(told, str) else json.dumps(told)


def events(*told: tuple[str, dict[str, Any]]) -> tuple[int, str, str]:
    frames = [
        f"id: {number}\nevent: {name}\ndata: {json.dumps({'timestamp': 1.0, **data})}\n\n"
        for number, (name, data) in enumerate(told, 1)
    ]
    return 200, "text/event-stream", "".join(frames)


@pytest.mark.parametrize(
    "told",
    [
        (200, "text/html", "<h1>It works</h1>"),
        answer("[1, 2]"),
        answer("[" * 100_000),
        answer({"id": "../../keys"}),
        answer({"id": 7}),
        answer({"error": "no"}, 500),
        (302, "text/plain", ""),
    ],
)
def test_what_is_no_easel_is_one_sentence(easel: Easel, told: tuple[int, str, str]) -> None:
    with stranger({"/jobs": told}) as address:
        done = easel("generate", "x", "--server", address)
    assert (done.code, done.out) == (1, "")
    assert (
        done.err == f"easel: What answers at {address} is no Easel, or none that this shell knows."
    )


@pytest.mark.parametrize(
    "told",
    [
        (200, "text/plain", "hello"),
        (200, "text/event-stream", "event: queued\ndata: {}\n\n"),
        (200, "text/event-stream", "id: x\nevent: queued\ndata: {}\n\n"),
        (200, "text/event-stream", "id: 1\nevent: queued\ndata: nonsense\n\n"),
        (200, "text/event-stream", ENDLESS * 1100),
        events(("progressed", {"progress": "much"})),
        events(("image_ready", {"index": 0, "image_id": "../keys", "seed": 1}), ("succeeded", {})),
    ],
)
def test_events_that_are_none_are_one_sentence(easel: Easel, told: tuple[int, str, str]) -> None:
    with stranger({"/jobs": answer({"id": "a1"}), "/jobs/a1/events": told}) as address:
        done = easel("generate", "x", "--server", address)
    assert done.code == 1
    assert (
        done.err == f"easel: What answers at {address} is no Easel, or none that this shell knows."
    )
    assert not Path("out.png").exists()


def test_events_of_later_versions_are_passed_over(easel: Easel) -> None:
    told = events(("sung", {"song": "la"}), ("cancelled", {}))
    with stranger({"/jobs": answer({"id": "a1"}), "/jobs/a1/events": told}) as address:
        assert easel("generate", "x", "--server", address).code == 3


def test_an_event_that_comes_again_is_one(easel: Easel) -> None:
    status, kind, once = events(("started", {"worker": "w", "attempt": 1}))
    told = status, kind, once * 2 + once.replace("id: 1", "id: 2").replace("started", "cancelled")
    with stranger({"/jobs": answer({"id": "a1"}), "/jobs/a1/events": told}) as address:
        done = easel("generate", "x", "--json-events", "--server", address)
    assert [line.get("number") for line in done.lines] == [1, 2, None]


def test_a_server_of_another_time_is_named(easel: Easel) -> None:
    with stranger({"/models/fake/unload": answer(NOT_THERE, 404)}) as address:
        done = easel("models", "unload", "fake", "--server", address)
    assert done.code == 1
    assert f"The server at {address} does not know this: it may be older" in done.err


def test_a_hostile_server_cannot_steer_the_terminal() -> None:
    progressed = {
        "phase": "generating",
        "progress": 50.0,
        "fraction": 0.5,
        "eta_seconds": 5.0,
        "message": EVIL,
        "preview": "AAAA",
    }
    failure = {"code": "generation_failed", "message": EVIL}
    told = events(("progressed", progressed), ("failed", failure))
    job = {"id": EVIL, "status": EVIL, "model": EVIL, "prompt": EVIL, "fraction": "x"}
    routes = {
        "/jobs": answer({"id": "a1", "jobs": [job]}),
        "/jobs/a1/events": told,
        "/models": answer({"data": [{"id": EVIL, "state": EVIL, "reason": EVIL}]}),
        "/controls": answer({"controls": []}),
        "/styles": answer({"styles": [{"id": EVIL, "aliases": [EVIL], "prefix": EVIL}]}),
        "/loras": answer({"loras": [LORA]}),
        "/models/fake/load": answer({"id": EVIL, "workers": [EVIL]}),
        "/models/fake/unload": answer({"error": {"message": EVIL, "code": EVIL}}, 400),
    }
    with stranger(routes) as address:
        for words, code in (
            (("generate", "x", "--preview", "blocks"), 1),
            (("jobs", "list"), 0),
            (("models", "list"), 0),
            (("styles",), 0),
            (("loras", "list"), 0),
            (("models", "load", "fake"), 0),
            (("models", "unload", "fake"), 2),
        ):
            with terminal(*words, EASEL_SERVER=address, COLORTERM="truecolor") as seen:
                assert seen.ended() == code, words
                raw, text = seen.raw, seen.text
            assert b"\x1b]" not in raw, words
            assert b"\x1b[2J" not in raw, words
            assert r"\x1b]0;" in text, words


def test_a_job_that_nobody_tells_of_any_more_may_go_on(
    easel: Easel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli._server._PATIENCE", 0.3)
    told = (503, "application/json", json.dumps({"error": {"message": "x", "code": "draining"}}))
    began = time.monotonic()
    with stranger({"/jobs": answer({"id": "a1"}), "/jobs/a1/events": told}) as address:
        done = easel("generate", "x", "--server", address)
    assert done.code == 1
    assert "Job a1 may go on: easel jobs watch a1" in done.err
    assert time.monotonic() - began < 10
