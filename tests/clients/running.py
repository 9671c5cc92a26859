"""Runs clients that are written in, or installed for, something else than the tests."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

from tests.gateway import Gateway
from tests.pictures import COLOURS, from_base64, pixels

HERE = Path(__file__).parent


def printed_by(program: list[str], call: dict[str, Any]) -> dict[str, Any]:
    """What the program prints, as JSON, when it is told `call`."""
    ran = subprocess.run(
        program,
        cwd=HERE,
        input=json.dumps(call).encode(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    printed: dict[str, Any] = json.loads(ran.stdout)
    return printed


def red_circle_in(folder: Path) -> Path:
    picture = Image.new("RGB", (256, 256), COLOURS["white"])
    ImageDraw.Draw(picture).ellipse((51, 51, 205, 205), COLOURS["red"])
    path = folder / "red.png"
    picture.save(path)
    return path


def right_half_mask_in(folder: Path) -> Path:
    """Transparent where to edit: on the right."""
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (128, 0, 256, 256))
    path = folder / "mask.png"
    mask.save(path)
    return path


def assert_only_the_right_half_changed(b64: str, before: Path) -> None:
    changed = np.abs(from_base64(b64).astype(float) - pixels(before.read_bytes()))
    assert changed[:, :128].mean() <= 6
    assert changed[:, 128:].mean() > 30


def jobs(gateway: Gateway, prompt: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{gateway.url}/jobs", params={"q": prompt}).json()[
        "jobs"
    ]
    return found


@contextmanager
def losing_the_first_answer(gateway: Gateway, prompt: str) -> Iterator[str]:
    """The address of a proxy that hangs up on its first client as soon as that one's job exists."""

    def serve() -> None:
        first, _ = listener.accept()
        with first, socket.create_connection(("127.0.0.1", gateway.port)) as upstream:
            pump = threading.Thread(target=pass_on, args=(first, upstream))
            pump.start()
            while not jobs(gateway, prompt):
                time.sleep(0.01)
            first.shutdown(socket.SHUT_RDWR)
            pump.join()  # which then hangs up on the gateway
        second, _ = listener.accept()
        with second, socket.create_connection(("127.0.0.1", gateway.port)) as upstream:
            pump = threading.Thread(target=pass_on, args=(second, upstream))
            pump.start()
            pass_on(upstream, second)
            pump.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = threading.Thread(target=serve, daemon=True)
        proxy.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxy.join(10)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """What comes from one goes to the other, until either ends."""
    try:
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side has ended
        pass
