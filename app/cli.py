"""Easel in the shell: serve, generate, inspect, models, bench."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table

from app.domain.errors import EaselError, InvalidRequest, error_from
from app.domain.events import Failed, Progressed, Queued
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.presets import (
    FILE_NAME,
    GATES,
    Calibration,
    Presets,
    Trial,
    chosen,
    refusal,
    surroundings,
    told,
)
from app.scheduling.batch_profile import BatchProfile, BatchProfiles, profile_of
from app.scheduling.expectations import device_kind
from app.service import ImageService
from app.settings import ConfigurationError, Settings, load_cards, load_settings
from app.store.database import StoreRefused

if TYPE_CHECKING:
    from app.engines.base import Engine

_shell = typer.Typer(
    help="A self-hosted image API in front of Stable Diffusion and Flux.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_bench = typer.Typer(
    help="Measure what a model can do on this machine; best while nothing else runs here.",
    no_args_is_help=True,
)
_shell.add_typer(_bench, name="bench")
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
    metadata: Annotated[
        bool | None, typer.Option(help="Whether the picture tells how it was drawn.")
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
        metadata=metadata,
        output_format=output.suffix.removeprefix(".") or None,
    )
    with _errors_told():
        asyncio.run(_generate(arguments, output))


@_shell.command()
def inspect(
    picture: Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Tell how a picture was drawn, by Easel or another program, as far as its file says."""
    data = _read(picture) or b""
    from app.engines.picture_text import read

    name = _shown(str(picture))
    try:
        told = read(data)
    except InvalidRequest:
        _stop(f"{name} is no PNG, JPEG or WebP that can be read", 1)
    if not told.facts:
        _stop(f"{name} does not tell how it was drawn", 1)
    if as_json:
        whole = json.dumps({"file": str(picture), **msgspec.to_builtins(told)}, indent=2)
        print(whole.replace("\x7f", "\\u007f"))  # all else beyond visible ASCII is escaped already
        return
    print(f"{name}  {told.format} {told.width}x{told.height}")
    for key, value in told.facts.items():
        print(f"{_shown(key):<20}  {_shown(value)}")


def _shown(text: str) -> str:
    """Text from outside: what could steer a terminal, or fake a line, shows as an escape."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


@contextmanager
def _errors_told() -> Iterator[None]:
    """End the process with a sentence and a status where an error would end it with a traceback."""
    try:
        yield
    except InvalidRequest as error:
        _stop(f"{error.param or 'request'}: {error.message}", 2)
    except EaselError as error:
        _stop(error.message, 1)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}", 1)
    except KeyboardInterrupt:
        _stop("stopped", 130)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        _stop(f"{_shown(str(path))}: {error.strerror}", 2)


async def _generate(arguments: Arguments, output: Path) -> None:
    from app.main import build
    from app.workers.in_process import InProcessPool

    logging.basicConfig(level=logging.ERROR)
    settings = load_settings(preload=())
    with tempfile.TemporaryDirectory(prefix="easel-") as folder:
        gateway = build(settings, InProcessPool(settings.device_names()[:1]))
        try:
            await gateway.start(resume=False)
        except StoreRefused:  # a server that runs has it; then nothing of this is kept
            await gateway.close()
            settings = settings.model_copy(
                update={"data_dir": Path(folder), "database": "", "pictures": ""}
            )
            gateway = build(settings, InProcessPool(settings.device_names()[:1]))
            await gateway.start(resume=False)
        try:
            await _draw(gateway.service, arguments, output)
        finally:
            await gateway.close()


async def _draw(service: ImageService, arguments: Arguments, output: Path) -> None:
    job = await service.submit(arguments, owner="shell", door="shell")
    await _watch(service, job.id)
    for index, image in sorted(job.images.items()):
        many = f"-{index + 1}" if len(job.images) > 1 else ""
        path = output.with_stem(output.stem + many)
        path.write_bytes((await service.image(image.image_id)).data)
        print(f"{path}  seed {image.seed}")


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


# -- bench -----------------------------------------------------------------------------------------


@_bench.command()
def calibrate(
    model: str,
    quick: Annotated[bool, typer.Option("--quick", help="4 pictures instead of 32.")] = False,
    technique: Annotated[
        list[str] | None, typer.Option(help="Try only this one; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Try what could draw faster, and let the presets use what is close enough.

    Compares speed with preset exact and pixels with preset strict, at the model's default size and
    steps. A server that runs takes the outcome over at once.
    """
    settings = load_settings()
    (card,) = _cards(settings, [model])
    with _errors_told():
        calibration = _calibrated(settings, card, technique, quick=quick)
        Presets(settings.data_dir / FILE_NAME).learn(calibration)
    found = {preset: chosen(calibration.trials, preset) for preset in GATES}
    if as_json:
        presets = {preset: trial and told(trial) for preset, trial in found.items()}
        print(json.dumps({**msgspec.to_builtins(calibration), "presets": presets}, indent=2))
        return
    _show_trials(calibration.trials)
    for preset, trial in found.items():
        print(f"{preset}: {trial.technique if trial else 'refused, nothing passed'}")


def _calibrated(
    settings: Settings, card: ModelCard, only: Sequence[str] | None, *, quick: bool
) -> Calibration:
    # What was compiled before must not hide how long a server's first picture would take.
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    from app.engines import calibration

    device = settings.device_names()[0]
    techniques = only or calibration.candidates(card, device)
    subjects = calibration.QUICK if quick else calibration.ALL
    engine = _loaded(card, device)
    calibrator = calibration.Calibrator(engine, card, calibration.clock_for(device), subjects)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=_console, transient=True) as bar:

        def tried(technique: str) -> Trial:
            line = bar.add_task(technique, total=len(subjects))
            return calibrator.trial(technique, lambda done: bar.update(line, completed=done))

        trials = tuple(tried(technique) for technique in techniques)
    engine.unload()
    made_with = surroundings(card)
    return Calibration(card.id, device_kind(device), time.time(), made_with, trials)


def _show_trials(trials: Sequence[Trial]) -> None:
    headings = ("speed", "PSNR", "SSIM", "diff", "of", "first", *GATES)
    table = Table(Column("technique", no_wrap=True), *headings, box=None)
    for trial in trials:
        figures = (
            f"{trial.speedup:.2f}x",
            f"{trial.psnr:.1f} dB",
            f"{trial.ssim:.4f}",
            str(trial.max_difference),
            str(trial.pictures),
            f"{trial.warm_up:.1f} s",
        )
        verdicts = ("refused" if refusal(trial, preset) else "passed" for preset in GATES)
        table.add_row(trial.technique, *(("",) * 6 if trial.failed else figures), *verdicts)
    Console().print(table)
    for trial in trials:
        reasons: dict[str, list[str]] = {}
        for preset in GATES:
            if reason := refusal(trial, preset):
                reasons.setdefault(reason, []).append(preset)
        for reason, presets in reasons.items():
            print(f"{trial.technique} is refused for {' and '.join(presets)}: {reason}")


@_bench.command()
def profile(
    model: Annotated[list[str] | None, typer.Argument(help="Model ids; all if none.")] = None,
    size: Annotated[str | None, typer.Option(help="Such as 512x512; else the model's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how many pictures may share a forward of the denoiser, and store it for the server.

    Do this while no server uses the data folder: one that runs knows only its own measurements.
    """
    settings = load_settings()
    device = settings.device_names()[0]
    width, height = _sides(size)
    profiles = BatchProfiles(settings.data_dir / "batch_profiles.json")
    measured: list[BatchProfile] = []
    for card in _cards(settings, model):
        with _errors_told():
            wish = Arguments(prompt="a measurement", width=width, height=height)
            request = card.resolve(wish, draw_seed=lambda: 0)
            engine = _loaded(card, device)
            with _console.status(card.id):
                seconds = engine.profile(request)
            engine.unload()
        drawn = (request.width, request.height)
        one = profile_of(card.id, device_kind(device), drawn, seconds)
        profiles.learn(one)
        measured.append(one)
    if as_json:
        shown: list[dict[str, Any]] = [
            {**msgspec.to_builtins(one, str_keys=True), "cap": one.cap} for one in measured
        ]
        print(json.dumps(shown, indent=2))
        return
    table = Table("model", "size", "seconds a picture, by how many share", "at once", box=None)
    for one in measured:
        shares = (f"{count}: {took / count:.4f}" for count, took in one.seconds.items())
        rate = ", ".join(shares) or "cannot be shared"
        table.add_row(one.model, f"{one.width}x{one.height}", rate, str(one.cap))
    Console().print(table)


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if match is None:
        _stop("--size must be like 512x512", 2)
    return int(match[1]), int(match[2])


def _cards(settings: Settings, names: Sequence[str] | None) -> list[ModelCard]:
    """The cards of these ids; all of them for none."""
    cards = load_cards(settings.models_dir)
    for name in names or ():
        if name not in cards:
            _stop(f"there is no model {name}; models: {', '.join(cards)}", 2)
    return [cards[name] for name in names or cards]


def _loaded(card: ModelCard, device: str) -> Engine:
    """The model in this process, which from now on computes as a worker does."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see workers/local.py; before torch
    logging.basicConfig(level=logging.ERROR)
    from app.engines.turnstile import Turnstile
    from app.workers.engine_host import engine_for

    engine = engine_for(card, Turnstile())
    with _console.status(f"loading {card.id}"):
        engine.load(card, device)
    return engine
