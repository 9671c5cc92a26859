"""`easel bench`: what a model can do on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table

from app.cli._shell import console, errors_told, shell, stop
from app.domain.model_card import ModelCard
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
from app.settings import Settings, load_cards, load_settings

if TYPE_CHECKING:
    from app.engines.base import Engine

bench = typer.Typer(
    help="Measure what a model can do on this machine; best while nothing else runs here.",
    no_args_is_help=True,
)
shell.add_typer(bench, name="bench")


@bench.command()
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
    with errors_told():
        calibration = _calibrated(settings, card, technique, quick=quick)
        Presets(settings.data_dir / FILE_NAME).learn(calibration)
    found = {preset: chosen(calibration.trials, preset) for preset in GATES}
    if as_json:
        presets = {preset: trial and told(trial) for preset, trial in found.items()}
        print(json.dumps({**msgspec.to_builtins(calibration), "presets": presets}, indent=2))
        return
    show_trials(calibration.trials)
    for preset, trial in found.items():
        print(f"{preset}: {trial.technique if trial else 'refused, nothing passed'}")


def _calibrated(
    settings: Settings, card: ModelCard, only: Sequence[str] | None, *, quick: bool
) -> Calibration:
    # What was compiled before must not hide how long a server's first picture would take.
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    from app.engines import calibration
    from app.scheduling.expectations import device_kind

    device = settings.device_names()[0]
    techniques = only or calibration.candidates(card, device)
    subjects = calibration.QUICK if quick else calibration.ALL
    engine = _loaded(card, device)
    calibrator = calibration.Calibrator(engine, card, calibration.clock_for(device), subjects)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as bar:

        def tried(technique: str) -> Trial:
            line = bar.add_task(technique, total=len(subjects))
            return calibrator.trial(technique, lambda done: bar.update(line, completed=done))

        trials = tuple(tried(technique) for technique in techniques)
    engine.unload()
    made_with = surroundings(card)
    return Calibration(card.id, device_kind(device), time.time(), made_with, trials)


def show_trials(trials: Sequence[Trial]) -> None:
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


@bench.command()
def profile(
    model: Annotated[list[str] | None, typer.Argument(help="Model ids; all if none.")] = None,
    size: Annotated[str | None, typer.Option(help="Such as 512x512; else the model's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how many pictures may share a forward of the denoiser, and store it for the server.

    Do this while no server uses the data folder: one that runs knows only its own measurements.
    """
    from app.scheduling.expectations import device_kind

    settings = load_settings()
    device = settings.device_names()[0]
    width, height = _sides(size)
    profiles = BatchProfiles(settings.data_dir / "batch_profiles.json")
    measured: list[BatchProfile] = []
    for card in _cards(settings, model):
        with errors_told():
            wish = card.usual("a measurement", width=width, height=height)
            request = card.resolve(wish, draw_seed=lambda: 0)
            engine = _loaded(card, device)
            with console.status(card.id):
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
        stop("--size must be like 512x512", 2)
    return int(match[1]), int(match[2])


def _cards(settings: Settings, names: Sequence[str] | None) -> list[ModelCard]:
    """The cards of these ids; all of them for none."""
    cards = load_cards(settings.models_dir)
    for name in names or ():
        if name not in cards:
            stop(f"there is no model {name}; models: {', '.join(cards)}", 2)
    from app.main import open_shelf

    shelf = open_shelf(settings, cards)
    here = {name: card for name in cards if (card := shelf.local(name)) is not None}
    for name in names or ():
        if name not in here:
            stop(f"the files of {name} are not here; run: easel models pull {name}", 2)
    return [here[name] for name in names or here]


def _loaded(card: ModelCard, device: str) -> Engine:
    """The model in this process, which from now on computes as a worker does."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see workers/local.py; before torch
    logging.basicConfig(level=logging.ERROR)
    from app.engines.turnstile import Turnstile
    from app.workers.engine_host import engine_for

    engine = engine_for(card, Turnstile())
    with console.status(f"loading {card.id}"):
        engine.load(card, device)
    return engine
