"""Easel in the shell: serve, generate, inspect, stats, models, loras, styles, bench."""

from __future__ import annotations

from app.cli import drawing, history, loras, measuring, models, planning, serving, styles
from app.cli._shell import shell, stop
from app.settings import ConfigurationError

__all__ = [
    "drawing",
    "history",
    "loras",
    "main",
    "measuring",
    "models",
    "planning",
    "serving",
    "styles",
]


def main() -> None:
    try:
        shell()
    except ConfigurationError as error:
        stop(str(error), 2)
