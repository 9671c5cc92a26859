"""Makes the calls of litellm's image functions that stdin tells, and prints what came of each."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import litellm  # type: ignore[import-not-found]

litellm.suppress_debug_info = True  # it would be printed among the answers


def result_of(function: str, given: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    with ExitStack() as stack:
        files = {name: stack.enter_context(Path(path).open("rb")) for name, path in paths.items()}
        try:
            answer = getattr(litellm, function)(api_key="none", **given, **files)
            return {"answer": answer.model_dump()}
        except Exception as error:  # whatever litellm makes of an answer is what its users see
            status = getattr(error, "status_code", None)
            return {"kind": type(error).__name__, "status": status, "message": str(error)}


told = json.load(sys.stdin)
sys.stdout.write(json.dumps({"results": [result_of(**call) for call in told["calls"]]}))
