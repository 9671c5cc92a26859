"""Easel in the shell: serve, generate, models."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from app.domain.errors import EaselError, InvalidRequest, error_from
from app.domain.events import Failed, Progressed, Queued
from app.domain.request import Arguments
from app.service import ImageService
from app.settings import ConfigurationError, load_cards, load_settings

_shell = typer.Typer(
    help="A self-hosted image API in front of Stable Diffusion and Flux.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_console = Console(stderr=True)


def main() -> None:
    try:
        _shell()
    except ConfigurationError as error:
        _stop(str(error), 2)


def _stop(text: str, status: int) -> NoReturn:
    _console.print(f"easel: {text}", style="red", highlight=False, markup=False)
    sys.exit(status)


@_shell.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any.")] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C."""
    from app.server import run

    given = {"host": host, "port": port}
    run(load_settings(**{name: value for name, value in given.items() if value is not None}))


@_shell.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models that have a card."""
    cards = load_cards(load_settings().models_dir).values()
    if as_json:
        print(json.dumps([card.model_dump(mode="json") for card in cards], indent=2))
        return
    table = Table("id", "family", "size", "steps", "tasks", "title", box=None)
    for card in cards:
        default = card.defaults
        size = f"{default.width}x{default.height}"
        steps = str(default.num_inference_steps)
        table.add_row(card.id, card.family, size, steps, ", ".join(card.tasks), card.title)
    Console().print(table)


@_shell.command()
def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "out.png"
    ),
    model: Annotated[str | None, typer.Option(help="Model id.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    n: Annotated[int | None, typer.Option(help="How many; files get -1, -2 …")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to obey.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, such as euler_a.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Paint only where this is white.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 keeps the picture, 1 none of it.")
    ] = None,
) -> None:
    """Draw on this machine, without a server."""
    arguments = Arguments(
        prompt=prompt,
        model=model,
        negative_prompt=negative_prompt,
        n=n,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        seed=seed,
        strength=strength,
        image=_read(image),
        mask_image=_read(mask),
        output_format=output.suffix.removeprefix(".") or None,
    )
    try:
        asyncio.run(_generate(arguments, output))
    except InvalidRequest as error:
        _stop(f"{error.param or 'request'}: {error.message}", 2)
    except EaselError as error:
        _stop(error.message, 1)
    except KeyboardInterrupt:
        _stop("stopped", 130)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        _stop(f"{path}: {error.strerror}", 2)


async def _generate(arguments: Arguments, output: Path) -> None:
    from app.main import build
    from app.workers.in_process import InProcessPool

    logging.basicConfig(level=logging.ERROR)
    settings = load_settings(preload=())
    pool = InProcessPool(settings.device_names()[:1], max_models=1)
    service, scheduler = build(settings, pool)
    await scheduler.start()
    try:
        job = service.submit(arguments, owner="shell", door="shell")
        await _watch(service, job.id)
        for index, image in sorted(job.images.items()):
            many = f"-{index + 1}" if len(job.images) > 1 else ""
            path = output.with_stem(output.stem + many)
            path.write_bytes((await service.image(image.image_id)).data)
            print(f"{path}  seed {image.seed}")
    finally:
        await scheduler.close()


async def _watch(service: ImageService, job_id: str) -> None:
    """Show the job's progress until it ends. Raises the EaselError that it ended with."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        line = bar.add_task("Starting...", total=1.0, eta="")
        async for numbered in service.follow(job_id):
            match numbered.event:
                case Queued(eta_seconds=eta):
                    bar.update(line, description="Starting...", eta=_seconds(eta))
                case Progressed() as event:
                    bar.update(
                        line,
                        description=event.message,
                        completed=event.fraction,
                        eta=_seconds(event.eta_seconds),
                    )
                case Failed(code, message):
                    raise error_from(code, message)


def _seconds(eta: float) -> str:
    return f"{eta:.1f} s left" if eta < 60 else f"{eta / 60:.0f} min left"
