"""A line of the log is a line, and tells nothing that it was not told."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from app import logs
from app.domain.errors import GenerationFailed


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log of the tests is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.setenv("EASEL_LOG_FORMAT", "auto")
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_is_json_with_what_it_was_told(
    kept: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("json", worker="cuda:1")
    logging.getLogger("app.x").warning("it %s", "happened", extra={"key": "k", "seconds": 0.5})
    (line,) = map(json.loads, said(capsys))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "it happened",
        "level": "warning",
        "logger": "app.x",
        "worker": "cuda:1",
        "key": "k",
        "seconds": 0.5,
    }


@pytest.mark.parametrize("format", ["json", "console"])
def test_nothing_makes_a_second_line(
    kept: None, capsys: pytest.CaptureFixture[str], format: logs.Format
) -> None:
    logs.set_up(format)
    logging.getLogger("app").error("a\r\nb\x1b[31m\u2028c %s", "d\ne", extra={"more": "f\ng"})
    lines = said(capsys)
    assert len(lines) == 1
    assert all(mark.isprintable() for mark in lines[0])


def test_the_text_of_an_exception_stays_out(kept: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json")
    try:
        try:
            raise ValueError("a secret prompt")
        except ValueError as error:
            raise GenerationFailed("It failed.") from error
    except GenerationFailed:
        logging.getLogger("app").exception("a run failed")
    (text,) = said(capsys)
    assert "secret" not in text
    line = json.loads(text)
    assert line["exception"] == ["app.domain.errors.GenerationFailed", "builtins.ValueError"]
    assert "test_the_text_of_an_exception_stays_out" in line["raised_in"][-1]


def test_a_program_gets_json_and_its_workers_write_alike(
    kept: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("auto")
    assert logs.of_gateway() == "json"
    logs.set_up("console")
    assert logs.of_gateway() == "console"
