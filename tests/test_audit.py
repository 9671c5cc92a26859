"""A fault in a dependency fails the check; an index without advisories does not."""

from __future__ import annotations

from typing import Any

from tools.audit import verdict

FAULT = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.0"]}


def package(name: str, *faults: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": list(faults)}


def test_a_fault_fails_the_check() -> None:
    told, status = verdict([package("good"), package("bad", FAULT)])
    assert (told, status) == ("bad 1.0: PYSEC-1, mended in 2.0", 1)


def test_no_fault_is_told_with_how_many_were_looked_at() -> None:
    unknown = {"name": "unknown", "skip_reason": "not found"}
    assert verdict([package("good"), unknown]) == ("no known fault in 1 of 2 packages", 0)


def test_without_an_advisory_service_nothing_is_claimed() -> None:
    unknown = {"name": "unknown", "skip_reason": "not found"}
    for packages in ([], [unknown]):
        assert verdict(packages) == ("skipped: no advisory service", 0)
