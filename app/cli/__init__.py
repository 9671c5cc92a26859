"""Easel in the shell: serve, generate, inspect, stats, models, controls, styles, bench."""

from __future__ import annotations

from app.cli import controls, drawing, history, measuring, models, planning, serving, styles
from app.cli._shell import shell, stop
from app.settings import ConfigurationError

__all__ = [
    "controls",
    "drawing",
    "history",
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
