"""`easel jobs`: what is drawn at a server, and what was."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from app.cli._complete import job_ids, model_ids
from app.cli._drawing import Drawing
from app.cli._preview import Way, way_of
from app.cli._progress import Bars, left
from app.cli._remote import finish
from app.cli._server import At, Json, Key, Server, checked, server_or_own
from app.cli._shell import ENDS, AsJson, console, cut, errors_told, shell, shown
from app.cli._watching import watch_all
from app.domain.errors import EaselError
from app.domain.job import Status

jobs = typer.Typer(
    help="List the jobs of a server, watch them, cancel them, draw them again.",
    no_args_is_help=True,
)
shell.add_typer(jobs, name="jobs")

_PROMPT = 60
"""Characters of a prompt in a table."""

JobId = Annotated[
    str, typer.Argument(help="Its id, as in the list.", autocompletion=job_ids, metavar="ID")
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write its pictures here.")]
JsonEvents = Annotated[
    bool, typer.Option("--json-events", help="Print each event as well, one a line.")
]
Preview = Annotated[Way, typer.Option(help="How the terminal shows what is not finished yet.")]


@jobs.command("list")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only those.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Only of this model.", autocompletion=model_ids)
    ] = None,
    search: Annotated[str, typer.Option(help="Beginnings of words of the prompt.")] = "",
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1, max=1000)] = 20,
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """List jobs of every door, newest first: your own, or everybody's for who may see them."""
    asked: dict[str, str | int] = {"limit": limit}
    given = {"status": status, "model": model, "q": search}
    asked |= {name: value for name, value in given.items() if value}
    with errors_told(), server_or_own(server, key) as asking:
        told = asking.jobs(asked)
        if as_json:
            print(json.dumps(told, indent=2))
        elif told:
            Console().print(_table(told, time.time()))
        else:
            console.print("there are no such jobs")


def _table(found: list[Json], now: float) -> Table:
    ids = Column("id", no_wrap=True)
    others = [Column(name, no_wrap=True) for name in ("status", "", "", "left", "model", "age")]
    table = Table(ids, *others, "prompt", box=None)  # the prompt is what gets shorter
    for job in found:
        going = job.get("status") in ("queued", "running")
        fraction = min(max(_number(job.get("fraction")), 0.0), 1.0)
        eta = _number(job.get("eta_seconds"))
        table.add_row(
            Text(cut(str(job.get("id")), 32)),
            Text(cut(str(job.get("status")), 16)),
            ProgressBar(1.0, fraction, width=10) if going else "",
            f"{fraction:.0%}" if going else "",
            left(eta).removesuffix(" left") if going else "",
            Text(cut(str(job.get("model")), 32)),
            _age(now - _number(job.get("created"))),
            Text(cut(str(job.get("prompt")), _PROMPT), no_wrap=True, overflow="ellipsis"),
        )
    return table


def _number(value: Any) -> float:
    """A figure of a server; 0 for what is none."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else 0.0


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


@jobs.command()
def watch(
    job_id: Annotated[
        str | None,
        typer.Argument(
            help="Its id; all of yours that are not done, if none is given.",
            autocompletion=job_ids,
            metavar="ID",
        ),
    ] = None,
    output: Output = None,
    preview: Preview = "auto",
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
    json_events: JsonEvents = False,
) -> None:
    """Show how a job goes, or all that are not done yet, to the end; the exit code tells which.

    Ctrl-C ends the watching, and not the jobs. A broken connection is taken up again.
    """
    with errors_told(), server_or_own(server, key) as asked:
        if job_id is None:
            status = watch_all(asked, as_json=as_json, as_events=json_events)
            raise typer.Exit(status)
        _watch(asked, checked(job_id), output, preview, as_json=as_json, as_events=json_events)


def _watch(
    server: Server, job_id: str, output: Path | None, way: Way, *, as_json: bool, as_events: bool
) -> None:
    bars = Bars(way_of(way, console))
    drawing = Drawing(output, bars, as_json=as_json, as_events=as_events)
    drawing.begins(job_id)
    try:
        finish(server, drawing, bars, cancels=False)
    except EaselError as error:
        drawing.wrong(error)
        raise
    if not as_json and not as_events and output is None:
        print(f"{job_id}  succeeded")


@jobs.command()
def cancel(
    job_id: Annotated[
        list[str], typer.Argument(help="Their ids.", autocompletion=job_ids, metavar="ID...")
    ],
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Cancel jobs; those that have ended stay as they are."""
    with errors_told(), server_or_own(server, key) as asked:
        ends: dict[str, str] = {}
        wrong: EaselError | None = None
        for one in job_id:
            try:
                told = asked.ask("DELETE", f"/jobs/{checked(one)}")
                ends[one] = cut(str(told.get("status")), 16)
            except EaselError as error:  # the others are cancelled all the same
                wrong = error
                console.print(f"easel: {cut(one, 64)}: {error.message}", style="red", markup=False)
            else:
                if not as_json:
                    print(f"{one}  {ends[one]}")
        if as_json:
            print(json.dumps(ends, indent=2))
        if wrong is not None:
            raise typer.Exit(ENDS["failed"])


@jobs.command()
def replay(
    job_id: JobId,
    watch: Annotated[bool, typer.Option("--watch", help="Show how it goes, to its end.")] = False,
    output: Output = None,
    preview: Preview = "auto",
    server: At = "",
    key: Key = "",
    as_json: AsJson = False,
    json_events: JsonEvents = False,
) -> None:
    """Draw a job again, exactly as it was; with -o its pictures are fetched."""
    with errors_told(), server_or_own(server, key) as asked:
        job = asked.submit(f"/jobs/{checked(job_id)}/replay")
        if watch or output is not None or json_events:
            how = {"as_json": as_json, "as_events": json_events}
            _watch(asked, job["id"], output, preview, **how)
        else:
            print(json.dumps(job, indent=2) if as_json else shown(job["id"]))
