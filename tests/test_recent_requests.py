"""Which request repeats which."""

from __future__ import annotations

import pytest

from app.domain.errors import KeyReused
from app.recent_requests import Attempt, RecentRequests


def test_a_retry_finds_the_job_of_the_equal_request() -> None:
    recent = RecentRequests()
    recent.remember(Attempt("me", "body"), "job")
    assert recent.find(Attempt("me", "body", is_retry=True)) == "job"


def test_an_equal_request_that_is_no_retry_is_a_wish_of_its_own() -> None:
    recent = RecentRequests()
    recent.remember(Attempt("me", "body"), "job")
    assert recent.find(Attempt("me", "body")) is None


@pytest.mark.parametrize("attempt", [Attempt("you", "body", True), Attempt("me", "other", True)])
def test_a_retry_of_somebody_or_something_else_finds_nothing(attempt: Attempt) -> None:
    recent = RecentRequests()
    recent.remember(Attempt("me", "body"), "job")
    assert recent.find(attempt) is None


def test_a_retry_belongs_to_the_newest_of_equal_requests() -> None:
    recent = RecentRequests()
    recent.remember(Attempt("me", "body"), "first")
    recent.remember(Attempt("me", "body"), "second")
    assert recent.find(Attempt("me", "body", is_retry=True)) == "second"


def test_a_key_finds_its_job_and_refuses_another_body() -> None:
    recent = RecentRequests()
    recent.remember(Attempt("me", "body", key="k"), "job")
    assert recent.find(Attempt("me", "body", key="k")) == "job"
    assert recent.find(Attempt("you", "body", key="k")) is None
    with pytest.raises(KeyReused):
        recent.find(Attempt("me", "other", key="k"))


def test_requests_are_forgotten_after_a_while_and_beyond_a_number() -> None:
    now = 0.0
    recent = RecentRequests(keep=2, seconds=10, clock=lambda: now)
    recent.remember(Attempt("me", "old"), "old")
    now = 9.0
    assert recent.find(Attempt("me", "old", is_retry=True)) == "old"
    now = 10.0
    assert recent.find(Attempt("me", "old", is_retry=True)) is None
    for name in ("a", "b", "c"):
        recent.remember(Attempt("me", name), name)
    assert recent.find(Attempt("me", "a", is_retry=True)) is None
    assert recent.find(Attempt("me", "b", is_retry=True)) == "b"
