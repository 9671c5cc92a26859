"""What a new front door takes: its own file, and a line in `app/main.py`."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.gateway import free_port, running_gateway


def _draw(port: int, prompt: str) -> list[tuple[str, str]]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(f"{prompt}\n".encode())
        lines = sock.makefile("r").read().splitlines()
    return [(kind, told) for kind, _, told in (line.partition(" ") for line in lines)]


def test_one_file_makes_a_door_whose_jobs_are_seen_at_every_other(tmp_path: Path) -> None:
    port = free_port()
    command = ("-m", "tests.line_door", str(port))
    with running_gateway(tmp_path, {}, command) as gateway, gateway.client() as client:
        told = _draw(port, "a red circle on a white background")
        assert told[0][0] == "job"
        (picture,) = (name for kind, name in told if kind == "picture")
        progress = [float(text) for kind, text in told if kind == "at"]
        assert progress == sorted(progress)
        assert progress[-1] == 100.0
        job = client.get(f"/jobs/{told[0][1]}").json()
        assert (job["door"], job["status"], job["images"]) == ("line", "succeeded", [picture])
        assert client.get(f"/images/{picture}").content.startswith(b"\x89PNG")
        assert _draw(port, "x" * 50_000)[0][0] == "error"

        # A second server finds the door's address taken, says so, and leaves nothing behind.
        other = tmp_path / "other"
        other.mkdir()
        refused = subprocess.run(
            [sys.executable, *command],
            env={
                "PATH": "",
                "HOME": str(other),
                "EASEL_DATA_DIR": str(other),
                "EASEL_PORT": str(free_port()),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == f"port {port} for lines is taken"
