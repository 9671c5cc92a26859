"""The arm that everything is compared with: the stock pipeline, and what a short script makes of it.

    python -m bench.raw CLASS SCHEDULER FOLDER

Loads the diffusers pipeline CLASS from FOLDER with the scheduler class SCHEDULER, then reads one JSON
object of pipeline arguments (and `seed`) from each line of standard input. Answers each with a line
`{"seconds": …, "png": base64}`: the wall time from the call to the finished JSON text, by way of
`output_type="pil"`, Pillow's PNG, the standard library's base64 and json. It sleeps between lines, so
it takes nothing from an arm that is timed meanwhile.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self


class RawPipeline:
    """This module as a child process. `spin_count` is GOMP_SPINCOUNT there, or the default: how long
    OpenMP's threads spin before they sleep. The worker's own is 10000."""

    def __init__(
        self, kind: str, scheduler: str, folder: str, spin_count: str | None = "10000"
    ) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("GOMP_SPINCOUNT", None)
        if spin_count:
            environment["GOMP_SPINCOUNT"] = spin_count
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.raw", kind, scheduler, folder],
            env=environment,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def draw(self, wish: dict[str, Any]) -> tuple[float, bytes]:
        """Seconds, and the PNG."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the raw pipeline has ended")
        told = json.loads(line)
        return told["seconds"], base64.b64decode(told["png"])


def main(kind: str, scheduler: str, folder: str) -> None:
    import diffusers
    import torch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    diffusers.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, kind).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        wish = json.loads(line)
        start = perf_counter()
        generator = torch.Generator("cpu").manual_seed(wish.pop("seed"))
        picture = pipeline(**wish, generator=generator, output_type="pil").images[0]
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        png = base64.b64encode(buffer.getvalue()).decode("ascii")
        json.dumps({"created": 0, "data": [{"b64_json": png}]})
        seconds = perf_counter() - start
        out.write(json.dumps({"seconds": seconds, "png": png}) + "\n")
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
