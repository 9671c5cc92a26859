"""A job that `easel` waits for: shown while it is drawn, its pictures written, its end told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from app.cli._progress import Bars
from app.domain.errors import EaselError
from app.domain.events import Expired, Failed, ImageReady, JobCancelled, NumberedEvent, Succeeded


class Drawing:
    """`as_json` prints one object at the end, `as_events` each event before it, one a line."""

    def __init__(
        self, output: Path | None, bars: Bars, *, as_json: bool = False, as_events: bool = False
    ) -> None:
        self.job_id: str | None = None
        self.ended: Succeeded | Failed | Expired | JobCancelled | None = None
        self._output = output
        self._bars = bars
        self._as_json = as_json or as_events
        self._as_events = as_events
        self._images: dict[int, ImageReady] = {}
        self._files: list[dict[str, Any]] = []

    def begins(self, job_id: str) -> None:
        self.job_id = job_id
        self._bars.add(job_id)

    def heard(self, numbered: NumberedEvent) -> None:
        """Take in the next event of the job that began."""
        job_id, event = self.job_id or "", numbered.event
        if self._as_events:
            from app.api._jobs import told  # what commands need not, that say little

            name, data = told(job_id, numbered)
            data.pop("preview", None)
            print(json.dumps({"event": name, "number": numbered.number, **data}), flush=True)
        self._bars.heard(job_id, event)
        if isinstance(event, ImageReady):
            self._images[event.index] = event
        elif isinstance(event, Succeeded | Failed | Expired | JobCancelled):
            self.ended = event

    def wanted(self) -> Iterator[tuple[ImageReady, Path]]:
        """The pictures that are to be written, and where; none of a job that did not end well."""
        if self._output is None or not isinstance(self.ended, Succeeded):
            return
        for index, image in sorted(self._images.items()):
            many = f"-{index + 1}" if len(self._images) > 1 else ""
            yield image, self._output.with_stem(self._output.stem + many)

    def write(self, image: ImageReady, path: Path, data: bytes) -> None:
        """Raises OSError."""
        path.write_bytes(data)
        self._files.append({"file": str(path), "seed": image.seed, "image_id": image.image_id})
        if not self._as_json:
            print(f"{path}  seed {image.seed}")

    def over(self) -> None:
        """Tell how it ended. Raises the EaselError that it ended with."""
        if isinstance(self.ended, Failed | Expired | JobCancelled):
            from app.api._jobs import error_in

            raise error_in(self.ended)
        if self._as_json:
            self._tell("succeeded", None)

    def wrong(self, error: EaselError) -> None:
        """Tell scripts what came in place of pictures."""
        if not self._as_json:
            return
        match self.ended:
            case Failed():
                status = "failed"
            case Expired():
                status = "expired"
            case JobCancelled():
                status = "cancelled"
            case _:
                status = "unknown" if self.job_id else "refused"
        self._tell(status, error)

    def _tell(self, status: str, error: EaselError | None) -> None:
        wrong = error and {"code": error.code, "message": error.message, "param": error.param}
        about = {"id": self.job_id, "status": status, "files": self._files, "error": wrong}
        indent = None if self._as_events else 2
        print(json.dumps(msgspec.to_builtins(about), indent=indent))
