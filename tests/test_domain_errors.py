"""The tree of errors: every code comes back as its own class, and the drawing shows every class."""

from __future__ import annotations

import re

import pytest

from app.domain import errors
from app.domain.errors import (
    EaselError,
    GenerationFailed,
    InvalidRequest,
    QueueFull,
    TryLater,
    error_from,
)

TREE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EaselError)
]


@pytest.mark.parametrize("kind", [kind for kind in TREE if not issubclass(kind, TryLater)])
def test_an_error_comes_back_as_its_own_class(kind: type[EaselError]) -> None:
    sent = kind("It went wrong.")
    back = error_from(sent.code, sent.message)
    assert type(back) is kind
    assert back.message == str(back) == "It went wrong."
    assert back.param is None


@pytest.mark.parametrize("code", ["queue_full", "no_such_code", ""])
def test_any_other_code_comes_back_as_a_failed_generation(code: str) -> None:
    """A full queue is never met by a worker, so its code is as foreign there as an unknown one."""
    back = error_from(code, "It went wrong.")
    assert type(back) is GenerationFailed
    assert back.message == "It went wrong."


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z]\w+)(  |$)", line):
            drawn[found[2]] = len(found[1]) // 4
    depth = {kind.__name__: len(kind.__mro__) - len(EaselError.__mro__) for kind in TREE}
    assert drawn == depth


def test_parents_are_drawn_above_their_children() -> None:
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z]\w+)(  |$)", line):
            above[len(found[1]) // 4 :] = [found[2]]
            if len(above) > 1:
                assert getattr(errors, found[2]).__base__.__name__ == above[-2]


def test_an_error_names_the_field_that_it_is_about() -> None:
    assert InvalidRequest("No.", param="width").param == "width"
    assert QueueFull("Full.", retry_after=7).retry_after == 7
