"""Easel in the shell: drawing, serving, and looking after what is drawn with."""

from __future__ import annotations

from app.cli import (
    agents,
    controls,
    drawing,
    history,
    inspecting,
    jobs,
    keys,
    loras,
    measuring,
    models,
    planning,
    proxying,
    serving,
    speed,
    styles,
)
from app.cli._shell import shell, stop
from app.settings import ConfigurationError

__all__ = [
    "agents",
    "controls",
    "drawing",
    "history",
    "inspecting",
    "jobs",
    "keys",
    "loras",
    "main",
    "measuring",
    "models",
    "planning",
    "proxying",
    "serving",
    "shell",
    "speed",
    "styles",
]


def main() -> None:
    try:
        shell()
    except ConfigurationError as error:
        stop(str(error), 2)
