"""The programs in the documents, as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.gateway import Gateway

_DOCS = Path(__file__).parent.parent / "docs"


def run_example(document: str, gateway: Gateway, folder: Path) -> str:
    """What the Python program of `docs/<document>` prints at this gateway, run in `folder`."""
    text = (_DOCS / document).read_text("utf-8")
    program = text.partition("```python\n")[2].partition("```")[0]
    assert "127.0.0.1:5199" in program
    done = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:5199", f"127.0.0.1:{gateway.port}")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
