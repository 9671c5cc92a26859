"""`easel inspect`: what a picture tells, on a terminal that nobody else writes to.

Promised: pictures of ours and of others are told, as lines or as JSON; what is no picture, or tells
nothing, is an error with a sentence; nothing from a file can steer the terminal or fake a line; torch
stays away.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import __version__
from app.domain.picture_facts import Origin, about
from app.engines.image_codec import encode
from tests.test_cli import easel, python_path
from tests.test_picture_facts import A1111, READ, commented, png_with, wish

PROMPT = "größer 🦊\nseed  9\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\u2028end"


def picture(kind: str, prompt: str = PROMPT) -> bytes:
    request = wish(prompt=prompt, output_format=kind)
    pixels = np.zeros((96, 64, 3), np.uint8)
    return encode(pixels, request, about(request, 5, Origin("", "ab" * 32, ("torch 2",))))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_is_told_line_by_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one").write_bytes(picture(kind))
    done = easel("inspect", "one", folder=tmp_path, PYTHONPATH=python_path(), PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"one  {kind} 64x96"
    told = dict(line.split(maxsplit=1) for line in lines[1:])
    assert told == {
        "prompt": "größer 🦊\\nseed  9\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\x7f\\u202e\\u2028end",
        "seed": "5",
        "model": "lab/m-1.5",
        "model_hash": "ab" * 32,
        "sampler": "dpmpp_2m_karras",
        "num_inference_steps": "20",
        "guidance_scale": "7.5",
        "size": "64x96",
        "software": f"easel {__version__}, torch 2",
    }


def test_json_is_exact_and_visible_ascii(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(picture("webp"))
    done = easel("inspect", "one", "--json", folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == 0
    assert all(" " <= mark <= "~" for mark in done.stdout.replace("\n", ""))
    told = json.loads(done.stdout)
    assert told["facts"]["prompt"] == PROMPT
    assert told["facts"]["seed"] == "5"
    assert {key: told[key] for key in ("file", "format", "width", "height")} == {
        "file": "one",
        "format": "webp",
        "width": 64,
        "height": 96,
    }


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_pictures_of_other_programs_are_told(tmp_path: Path, kind: str) -> None:
    comment = b"UNICODE\0" + A1111.encode("utf-16-be")
    (tmp_path / "one").write_bytes(
        png_with(parameters=A1111) if kind == "png" else commented(comment)
    )
    done = easel("inspect", "one", "--json", folder=tmp_path, PYTHONPATH=python_path())
    assert json.loads(done.stdout)["facts"] == READ


def test_names_from_outside_are_escaped_too(tmp_path: Path) -> None:
    text = "a fox\nSteps: 1, Seed: 2, Size: 8x8"
    (tmp_path / "one\x1b[2J").write_bytes(png_with(**{"odd\x1b[1m": "x", "other": text}))
    done = easel("inspect", "one\x1b[2J", folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0] == "one\\x1b[2J  png 8x8"
    assert "odd\\x1b[1m" in done.stdout


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"no picture", 1, "is no PNG, JPEG or WebP that can be read"),
        (png_with(), 1, "does not tell how it was drawn"),
        (commented(b"ASCII\0\0\0at noon"), 1, "does not tell how it was drawn"),
        (None, 2, "No such file"),
    ],
    ids=["no-picture", "silent", "camera", "absent"],
)
def test_what_tells_nothing_is_an_error(
    tmp_path: Path, data: bytes | None, status: int, words: str
) -> None:
    if data is not None:
        (tmp_path / "\x1b[2Jone").write_bytes(data)
    done = easel("inspect", "\x1b[2Jone", folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == status
    assert words in " ".join(done.stderr.split())
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_inspect_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(picture("png"))
    script = (
        "import sys; from app.cli._shell import shell as _shell\n"
        "sys.argv = ['easel', 'inspect', 'one']\n"
        "try: _shell()\n"
        "finally: print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": python_path(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
