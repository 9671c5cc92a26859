"""Restarts in mid-work, through nginx: nobody is dropped.

Every client ends with a result, or with an error that tells it to come again, and then it gets one.
EASEL_RESTARTS=20 makes it 20 of them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from bench.nginx import nginx_before
from tests.conftest import fake_settings
from tests.supervisor import Supervisor, supervised

RESTARTS = int(os.environ.get("EASEL_RESTARTS", "3"))
STREAMING = PLAIN = 8
DRAIN = 1.0

SETTINGS = {
    **fake_settings(),
    "EASEL_MAX_QUEUE": "100",
    "EASEL_DRAIN_SECONDS": str(DRAIN),
    "EASEL_PRELOAD": '["lab/slow"]',
}
BODY = {"prompt": "x", "model": "lab/slow", "num_inference_steps": 3}
RETRIES = 6


@pytest.mark.timeout(60 + 30 * RESTARTS)
def test_nobody_is_dropped_over_restarts(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with supervised(tmp_path / "data", SETTINGS) as service:
        service.wait_until_ready()
        with nginx_before(service.port, tmp_path / "nginx") as url:
            crowd = Crowd(url)
            crowd.start()
            longest = 0.0
            for _ in range(RESTARTS):
                time.sleep(2.5)  # as long as all of them need for a picture each
                longest = max(longest, restarted(service))
            time.sleep(1)
            crowd.stop()
    assert not crowd.dropped, Counter(crowd.dropped).most_common(5)
    assert crowd.seen["drawn"] > RESTARTS * 4, crowd.seen
    assert crowd.seen["sent away"] > 0, "no restart met anybody"
    assert longest < DRAIN + 6
    print(f"\n{RESTARTS} restarts: {dict(crowd.seen)}, longest end {longest:.1f} s")


def restarted(service: Supervisor) -> float:
    assert service.process is not None
    workers = psutil.Process(service.process.pid).children(recursive=True)
    took = service.end()
    gone, alive = psutil.wait_procs(workers, timeout=2)
    assert gone
    assert not alive
    service.start()
    service.wait_until_ready()
    return took


class Crowd:
    """Clients that ask again and again; `dropped` ended with neither picture nor error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: Counter[str] = Counter()
        self.dropped: list[str] = []
        self._stopping = threading.Event()
        wishes = [self._stream] * STREAMING + [self._plain] * PLAIN
        self._threads = [threading.Thread(target=self._repeat, args=(one,)) for one in wishes]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()

    def _repeat(self, wish: object) -> None:
        assert callable(wish)
        while not self._stopping.is_set():
            try:
                wish()
            except Exception as error:
                self.dropped.append(f"{type(error).__name__}: {str(error)[:200]}")

    def _plain(self) -> None:
        """With the SDK's own retries, which go by the status and Retry-After."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=RETRIES, timeout=60
        )
        answer = client.images.generate(
            prompt="x", model="lab/slow", extra_body={"num_inference_steps": 2}
        )
        assert answer.data
        assert answer.data[0].b64_json
        self.seen["drawn"] += 1

    def _stream(self) -> None:
        """As a careful client does it: what ends with a terminal error is asked for again."""
        for _ in range(RETRIES):
            end = self._streamed()
            if end == "done":
                self.seen["drawn"] += 1
                return
            self.seen["sent away"] += 1
            time.sleep(1)
        raise AssertionError("sent away for ever")

    def _streamed(self) -> str:
        with httpx.stream("POST", f"{self.url}/generate/stream", json=BODY, timeout=60) as answer:
            if answer.status_code != 200:
                assert answer.status_code in (429, 502, 503), answer.status_code
                error = json.loads(answer.read())["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert 1 <= int(answer.headers["retry-after"]) <= 59
                return str(error["code"])
            event = ""
            for line in answer.iter_lines():
                event = line.removeprefix("event: ") if line.startswith("event: ") else event
        assert event in ("done", "error"), f"a stream ended with {event or 'nothing'}"
        return event
