"""The shell: real processes, real pictures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import colour_at, corners, pixels


def easel(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        env={**os.environ, "EASEL_DATA_DIR": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def python_path() -> str:
    return str(Path(__file__).parents[1])


def test_generate_draws_without_a_server(tmp_path: Path) -> None:
    done = easel(
        *("generate", "a red circle on a white background", "--seed", "3", "-o", "circle.png"),
        folder=tmp_path,
        PYTHONPATH=python_path(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "circle.png  seed 3\n"
    picture = pixels((tmp_path / "circle.png").read_bytes())
    assert colour_at(picture, 0.5, 0.5) == "red"
    assert corners(picture) == {"white"}


def test_generate_says_what_is_wrong(tmp_path: Path) -> None:
    done = easel("generate", "x", "--width", "9", folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == 2
    assert "width must be between 128 and 512" in done.stderr
    assert not list(tmp_path.glob("*.png"))


def test_models_lists_the_cards(tmp_path: Path) -> None:
    done = easel("models", "--json", folder=tmp_path, PYTHONPATH=python_path())
    assert {card["id"] for card in json.loads(done.stdout)} == {"sketch", "sketch-flux"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"EASEL_PORT": "99999"}, "port"),
        ({"EASEL_DEFAULT_MODEL": "nothing"}, "nothing"),
        ({"EASEL_MODELS_DIR": "/nonexistent"}, "no model card"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    done = easel("serve", folder=tmp_path, PYTHONPATH=python_path(), **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = easel("serve", "--port", port, folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode != 0
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_with_a_mistake_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('id = "x"\nfamily = "none"\n')
    done = easel(
        "models", folder=tmp_path, PYTHONPATH=python_path(), EASEL_MODELS_DIR=str(tmp_path)
    )
    assert done.returncode == 2
    assert "broken.toml" in done.stderr
