"""Looks for known faults in the installed packages, as far as the advisory service answers.

    python tools/audit.py

Exit status 1 where a package has a fault that is not excused below. Without the service nothing is
known, and nothing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys

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
        print("pip-audit: skipped: no advisory service")
        return 0
    found = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in "
        + (", ".join(fault["fix_versions"]) or "no version yet")
        for package in packages
        for fault in package.get("vulns", ())
        if not EXCUSED.keys() & {fault["id"], *fault["aliases"]}
    ]
    print("\n".join(found) if found else f"pip-audit: {len(packages)} packages, no known fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
