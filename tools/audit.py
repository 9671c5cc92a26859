"""Looks for known faults in the installed packages, as far as the advisory service answers.

    python tools/audit.py

Exit status 1 where a package has a fault that is not excused below. Without the service nothing is
known, and nothing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

EXCUSED: dict[str, str] = {}
"""Advisories that do not matter here, and why."""

_SECONDS = 120


def main() -> int:
    command = (sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json")
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "10"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        packages = []
    told, status = verdict(packages)
    print(f"pip-audit: {told}")
    return status


def verdict(packages: list[dict[str, Any]]) -> tuple[str, int]:
    """What to say of pip-audit's findings, and the exit status. A package that the service does not
    know was not looked at; where it knows none, there is no such service behind this index."""
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return "skipped: no advisory service", 0
    found = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in "
        + (", ".join(fault["fix_versions"]) or "no version yet")
        for package in known
        for fault in package.get("vulns", ())
        if not EXCUSED.keys() & {fault["id"], *fault["aliases"]}
    ]
    if found:
        return "\n".join(found), 1
    return f"no known fault in {len(known)} of {len(packages)} packages", 0


if __name__ == "__main__":
    sys.exit(main())
