"""Bars of jobs in the terminal: how far each is, when it will be done, what it looks like so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from app.cli._preview import Screen, Shown
from app.cli._shell import console as standard
from app.cli._shell import cut, shown
from app.domain.events import Expired, Failed, JobCancelled, JobEvent, Progressed, Queued, Succeeded

_WIDTH = 60
"""Characters of a text beside a bar."""

_LOST = "The connection is lost, trying again..."


class Bars:
    """A bar for each job, and above them the last preview. Nothing is shown where there is no
    terminal. Texts may come from a server."""

    def __init__(
        self, way: Shown = "none", *, named: bool = False, console: Console = standard
    ) -> None:
        """`named` for bars that tell which job they are of."""
        self.screen = Screen(way, console)
        name = [TextColumn("{task.fields[name]}", markup=False)] if named else []
        self._progress = _WithPicture(
            self.screen,
            *name,
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            _Left(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),  # what a pipe is to get stays out of the terminal
        )
        self._lines: dict[str, TaskID] = {}
        self._texts: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.screen.clear()
        self._progress.stop()

    def add(self, job: str, name: str = "", text: str = "Starting...") -> None:
        if job not in self._lines:
            self._texts[job] = cut(text, _WIDTH)
            self._lines[job] = self._progress.add_task(
                self._texts[job], total=1.0, due=None, name=shown(name)
            )

    def remove(self, job: str) -> None:
        self._progress.remove_task(self._lines.pop(job))

    def heard(self, job: str, event: JobEvent) -> None:
        """Show what happened to a job that was added."""
        match event:
            case Queued(eta_seconds=eta, reason=reason):
                self.tell(job, f"Waiting, {reason}" if reason else "Waiting...", 0.0, eta)
            case Progressed():
                self.tell(job, event.message, event.fraction, event.eta_seconds)
                if event.preview is not None:
                    self.screen.show(event.preview)
            case Succeeded():
                self.tell(job, "Succeeded", 1.0)
            case Failed(message=why) | Expired(message=why):
                self.tell(job, why)
            case JobCancelled():
                self.tell(job, "Cancelled")

    def tell(
        self, job: str, text: str, fraction: float | None = None, eta: float | None = None
    ) -> None:
        """`fraction` is 0 to 1; in `eta` seconds it will be done."""
        self._texts[job] = cut(text, _WIDTH)
        due = None if eta is None else time.monotonic() + eta
        self._progress.update(
            self._lines[job], description=self._texts[job], completed=fraction, due=due
        )

    def trouble(self, lost: bool) -> None:
        """Whether the server cannot be heard just now."""
        for job, line in self._lines.items():
            self._progress.update(line, description=_LOST if lost else self._texts[job])


class _WithPicture(Progress):
    def __init__(self, screen: Screen, *columns: Any, **more: Any) -> None:
        self._screen = screen
        super().__init__(*columns, **more)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._screen.picture is not None:
            yield self._screen.picture
        yield from super().get_renderables()


class _Left(ProgressColumn):
    """Seconds that are left, which pass between two events as well."""

    def render(self, task: Task) -> Text:
        due = task.fields["due"]
        return Text("" if due is None else left(due - time.monotonic()))


def left(seconds: float) -> str:
    seconds = min(max(0.0, seconds), 1e9)
    return f"{seconds:.1f} s left" if seconds < 60 else f"{seconds / 60:.0f} min left"
