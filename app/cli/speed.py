"""`easel bench speed`: what a server does for so many clients at once."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from app.cli._complete import model_ids
from app.cli._server import At, Json, Key, Server, server_or_own
from app.cli._shell import ENDS, AsJson, console, errors_told, shown, stop
from app.cli.measuring import bench
from app.domain.errors import EaselError, NotFound
from app.domain.events import Expired, Failed, ImageReady, JobCancelled, Progressed

_MOST, _MOST_AT_ONCE = 1000, 64


class Sample(msgspec.Struct, frozen=True):
    """One job. Seconds count from before it was sent; `error` is a code, None if it ended well."""

    seconds: float
    first_seconds: float | None
    pictures: int
    error: str | None


class Speed(msgspec.Struct, frozen=True):
    """Of jobs that ended well: seconds to their end, and to the first that was told of their drawing.
    None where there are none."""

    jobs: int
    at_once: int
    seconds: float
    pictures: int
    pictures_per_second: float
    p50: float | None
    p95: float | None
    first_p50: float | None
    first_p95: float | None
    errors: dict[str, int]


@bench.command()
def speed(
    prompt: Annotated[str, typer.Option(help="The same for all.")] = "a red circle",
    model: Annotated[str | None, typer.Option(help="Model id.", autocompletion=model_ids)] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    jobs: Annotated[int, typer.Option("-n", "--jobs", help="How many.", min=1, max=_MOST)] = 8,
    at_once: Annotated[
        int, typer.Option("-c", "--at-once", help="Clients.", min=1, max=_MOST_AT_ONCE)
    ] = 2,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the jobs and pictures in its history.")
    ] = False,
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Measure a server: each client sends its next job when the one before has ended.

    Ends with 1 if any job did not end well. What was drawn for it is forgotten afterwards.
    """
    wish = {"model": model, "num_inference_steps": steps, "width": width, "height": height}
    body: Json = {"prompt": prompt} | {name: value for name, value in wish.items() if value}
    with errors_told(), server_or_own(server, key) as asked:
        asked.ask("GET", "/models")  # a wrong address or key is no result
        clients = _Clients(asked, body)
        try:
            samples, seconds = clients.measure(jobs, min(at_once, jobs))
        finally:
            clients.tidy(forget=not keep)
    told = summed(samples, seconds, min(at_once, jobs))
    if as_json:
        print(json.dumps(msgspec.to_builtins(told), indent=2))
    else:
        _show(told)
    if told.errors:
        raise typer.Exit(ENDS["failed"])


class _Clients:
    def __init__(self, server: Server, body: Json) -> None:
        self._server = server
        self._body = body
        self._ids: list[str] = []
        self._unfinished: set[str] = set()
        self._stopped = threading.Event()

    def measure(self, jobs: int, at_once: int) -> tuple[list[Sample], float]:
        """A sample for each job, and the seconds of all."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        began = time.monotonic()
        pool = ThreadPoolExecutor(at_once)
        try:
            with Progress(*columns, console=console, transient=True) as bar:
                line = bar.add_task("drawing", total=jobs)
                samples = []
                for sample in pool.map(lambda _: self._one(), range(jobs)):
                    samples.append(sample)
                    bar.advance(line)
            return samples, time.monotonic() - began
        except KeyboardInterrupt:
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            self.tidy(forget=False)
            stop("stopped; what was under way was cancelled", 130)
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _one(self) -> Sample:
        began, first, pictures = time.monotonic(), None, 0
        error: str | None = None
        try:
            job_id: str = self._server.submit("/jobs", self._body)["id"]
            self._ids.append(job_id)
            self._unfinished.add(job_id)
            if self._stopped.is_set():  # while it was on its way: nobody else knows of it
                self._server.ask("DELETE", f"/jobs/{job_id}")
            for numbered in self._server.follow(job_id):
                match numbered.event:
                    case Progressed() if first is None:
                        first = time.monotonic() - began
                    case ImageReady():
                        pictures += 1
                    case Failed(code=code) | Expired(code=code):
                        error = code
                    case JobCancelled():
                        error = "cancelled"
            self._unfinished.discard(job_id)
        except EaselError as refused:
            error = refused.code
        return Sample(time.monotonic() - began, first, pictures, error)

    def tidy(self, *, forget: bool) -> None:
        """Leave nothing that is drawn for nobody, and with `forget` nothing at all."""
        question = {"forget": "true"} if forget else {}
        for job_id in list(self._ids if forget else self._unfinished):
            try:
                self._server.ask("DELETE", f"/jobs/{job_id}", params=question)
            except NotFound:  # the server has forgotten it already
                continue
            except EaselError:  # it is gone, or wants no more of this
                return


def summed(samples: Sequence[Sample], seconds: float, at_once: int) -> Speed:
    good = [sample for sample in samples if sample.error is None]
    took = [sample.seconds for sample in good]
    firsts = [sample.first_seconds for sample in good if sample.first_seconds is not None]
    pictures = sum(sample.pictures for sample in good)
    return Speed(
        jobs=len(samples),
        at_once=at_once,
        seconds=seconds,
        pictures=pictures,
        pictures_per_second=pictures / seconds,
        p50=_quantile(took, 0.5),
        p95=_quantile(took, 0.95),
        first_p50=_quantile(firsts, 0.5),
        first_p95=_quantile(firsts, 0.95),
        errors=dict(Counter(sample.error for sample in samples if sample.error is not None)),
    )


def _quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def _show(told: Speed) -> None:
    rate = f"{told.pictures_per_second:.2f} pictures a second"
    print(f"{told.pictures} pictures in {told.seconds:.1f} s, {told.at_once} at once: {rate}")
    table = Table("seconds", "p50", "p95", box=None)
    rows = (
        ("to the first progress", told.first_p50, told.first_p95),
        ("to the picture", told.p50, told.p95),
    )
    for name, *figures in rows:
        table.add_row(name, *("" if one is None else f"{one:.3f}" for one in figures))
    Console().print(table)
    for code, count in told.errors.items():
        print(f"{count} ended with {shown(code)}")
