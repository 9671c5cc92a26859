"""docs/openai-compatibility.md tells of every field what the code does with it, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from app.api._http import STATUS
from app.api.openai.bodies import IGNORED, REFUSED, EditBody, GenerationBody, VariationBody
from tests.test_schema import DOCUMENT

TEXT = (Path(__file__).parents[1] / "docs" / "openai-compatibility.md").read_text("utf-8")

OPENAI = {
    "prompt",
    "model",
    "n",
    "size",
    "quality",
    "background",
    "output_format",
    "output_compression",
    "response_format",
    "stream",
    "partial_images",
    "style",
}
"""Fields that OpenAI has as well; what else a body takes is Easel's own."""


def rows(section: str) -> list[list[str]]:
    """The cells of all table rows of a section, without the heads of the tables."""
    found = re.search(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
    assert found, section
    lines = re.sub(r"^\|.*\n\|---.*\n", "", found[1], flags=re.MULTILINE).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_names(section: str) -> list[str]:
    return [name for row in rows(section) for name in names(row[0])]


ALIASES = {alias for aliases in GenerationBody.ALIASES.values() for alias in aliases}
FIELDS = set(GenerationBody.model_fields)


def test_the_forms_have_the_fields_of_the_json_body() -> None:
    assert set(EditBody.model_fields) == set(VariationBody.model_fields) == FIELDS


def test_what_is_honoured() -> None:
    told = first_names("Fields of OpenAI that are honoured")
    assert sorted(told) == sorted(OPENAI | {"image", "mask"})
    assert OPENAI <= FIELDS


def test_what_is_ignored() -> None:
    assert sorted(first_names("Fields of OpenAI that are accepted and ignored")) == sorted(IGNORED)
    assert not FIELDS & set(IGNORED)


def test_what_is_refused() -> None:
    assert sorted(first_names("Fields of OpenAI that are refused")) == sorted(REFUSED)
    assert not FIELDS & set(REFUSED)


def test_what_is_more() -> None:
    section = "Fields of Easel's own"
    assert sorted(first_names(section)) == sorted(FIELDS - OPENAI - ALIASES)
    told = {names(row[0])[0]: tuple(names(row[1])) for row in rows(section) if row[1]}
    assert told == GenerationBody.ALIASES


def test_headers() -> None:
    told = first_names("Answers")
    responses = DOCUMENT["paths"]["/v1/images/generations"]["post"]["responses"]
    known = {name for response in responses.values() for name in response["headers"]}
    assert sorted(told) == sorted(known)


def test_statuses() -> None:
    told = {int(row[0]) for row in rows("Statuses and retries")}
    responses = DOCUMENT["paths"]["/v1/images/generations"]["post"]["responses"]
    assert told == {int(status) for status in responses} - {200} | {405}
    assert told >= set(STATUS.values())
