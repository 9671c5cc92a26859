"""Starts a reference server in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from app.domain.model_card import ModelCard
from bench.server import started
from bench.wishes import SPIN_COUNT, constants, scheduler_of

_REQUIREMENTS = Path(__file__).parent / "requirements.txt"
_READY = {"tutorial": "/ready", "batching": "/health"}

Kind = Literal["tutorial", "batching"]


@contextmanager
def reference(kind: Kind, cards: Sequence[ModelCard], budget: int | None = None) -> Iterator[int]:
    """A server of these models, of which it holds at most `budget` at a time; yields its port."""
    told = {
        card.id: {
            "pipeline": card.pipeline_name,
            "scheduler": scheduler_of(card),
            "folder": card.source,
            "constants": constants(card),
        }
        for card in cards
    }
    environment = {
        **os.environ,
        "REFERENCE": json.dumps(told),
        "REFERENCE_BUDGET": str(budget or len(told)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GOMP_SPINCOUNT": SPIN_COUNT,
    }
    command = [str(_python()), "-m", f"bench.reference.{kind}"]
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        log = Path(folder) / "server.log"
        with started(command, environment, log, _READY[kind]) as (port, _):
            yield port


def _python() -> Path:
    """The interpreter of the environment beside the project's; made if it is absent or outdated."""
    home = Path(sys.prefix) / "bench-reference"
    mark = home / "requirements.txt"
    wanted = _REQUIREMENTS.read_bytes()
    if not mark.exists() or mark.read_bytes() != wanted:
        venv.create(home, with_pip=True, clear=True)
        folder = sysconfig.get_path("purelib", vars={"base": str(home)})
        # Torch and the rest are the project's: a second copy would be gigabytes, and another arm.
        borrowed = sysconfig.get_path("purelib")
        (Path(folder) / "project.pth").write_text(borrowed + "\n", "utf-8")
        pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps"]
        options = ["--disable-pip-version-check", "-r", str(_REQUIREMENTS)]
        subprocess.run([*pip, *options], check=True, stdout=sys.stderr)
        mark.write_bytes(wanted)
    return home / "bin/python"
