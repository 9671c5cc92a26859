"""Errors as gRPC tells them: every code has a status, and one that passes says when."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from app.api._http import STATUS
from app.api.grpc.statuses import CODES, status_of
from app.domain import errors
from app.domain.errors import EaselError, QueueFull, TryLater
from app.store.errors import StorageFull, StoreUnavailable

KINDS = [
    kind
    for kind in (*vars(errors).values(), StorageFull, StoreUnavailable)
    if isinstance(kind, type) and issubclass(kind, EaselError)
]


def made(kind: type[EaselError]) -> EaselError:
    if issubclass(kind, TryLater):
        return kind("It went wrong.", retry_after=7)
    return kind("It went wrong.", param="num_inference_steps")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_and_says_what_it_is(kind: type[EaselError]) -> None:
    error = made(kind)
    told = status_of(error)
    assert (told.code, told.details) == (CODES[kind.code], "It went wrong.")
    [(name, packed)] = told.trailing_metadata or ()
    assert name == "grpc-status-details-bin"
    status = Status.FromString(packed)
    assert (status.code, status.message) == (told.code.value[0], "It went wrong.")
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.code, "easel")
    found = {detail.type_url.rpartition(".")[2]: detail for detail in status.details}
    field = issubclass(kind, errors.InvalidRequest)
    assert ("BadRequest" in found) == field
    if field:
        bad = BadRequest()
        found["BadRequest"].Unpack(bad)
        assert bad.field_violations[0].field == "settings.steps"
    retry = RetryInfo()
    passes = issubclass(kind, errors.Unavailable | errors.ModelNotFetched)
    if passes and kind is not errors.QuotaSpent:
        assert found["RetryInfo"].Unpack(retry)
        assert retry.retry_delay.seconds == error.retry_after  # type: ignore[attr-defined]
    else:
        assert "RetryInfo" not in found


def test_the_doors_know_the_same_errors() -> None:
    assert set(CODES) == set(STATUS)
    assert StatusCode.OK not in CODES.values()
    assert StatusCode.UNKNOWN not in CODES.values()


def test_the_client_is_at_fault_at_both_doors_or_at_none() -> None:
    ours = {StatusCode.INTERNAL, StatusCode.UNAVAILABLE}
    for code, status in CODES.items():
        if status in ours:
            assert STATUS[code] >= 500, code
        if STATUS[code] in {400, 401, 403, 404}:
            assert status not in ours, code
    assert CODES[QueueFull.code] is StatusCode.RESOURCE_EXHAUSTED


def test_a_door_that_is_not_wanted_is_not_loaded() -> None:
    asked = "import sys, app.server; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_docs_tell_of_every_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "grpc.md").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", text, re.MULTILINE)
    told = {code: status for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)}
    assert told == {code: status.name for code, status in CODES.items()}
