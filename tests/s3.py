"""A server that speaks S3, for the tests, and an empty bucket in it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.postgres import free_port

_COUNT = itertools.count(1)


class Bucket:
    """Its URL, and what a client needs to reach it."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.url = f"s3://{name}/pictures"
        self.options = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "somebody",
            "secret_access_key": "secret",
        }


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the S3 server did not start"
            assert process.poll() is None, "the S3 server ended"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    name = f"easel-{next(_COUNT)}"
    signed = "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request"
    answer = httpx.put(f"{s3_endpoint}/{name}", headers={"authorization": signed})
    assert answer.status_code == 200, answer.text
    return Bucket(s3_endpoint, name)
