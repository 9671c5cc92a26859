"""What faster ways of drawing were measured to be worth on this machine, and which presets use them.

What you can rely on: "strict" and "exact" use none; "balanced" and "fast" use only what was measured
here, is faster than "exact" and passed its gate; what was measured no longer counts once the weights,
the card, the libraries or the processor are others. A damaged file costs presets, never a start.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.domain.request import Preset

_log = logging.getLogger(__name__)

FILE_NAME = "presets.json"

LEAST_SPEEDUP = 1.05
"""A technique must be this many times as fast as "exact": less is within what machines vary by."""

LONGEST_WARM_UP = 90.0
"""Seconds: a server takes a worker that says nothing for longer for dead."""


class Gate(msgspec.Struct, frozen=True):
    """How close every picture must come to that of "strict": dB, and 0 to 1."""

    psnr: float
    ssim: float


GATES: Mapping[Preset, Gate] = {"balanced": Gate(30.0, 0.95), "fast": Gate(24.0, 0.85)}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One technique beside "exact", in the same run.

    `speedup` is how many times as fast it is, the median of the pictures. `psnr`, `ssim` and
    `max_difference` (of a colour value, 0 to 255) are those of its worst picture against "strict": a
    preset is a promise to each picture, and a mean would hide the one that is spoilt. `warm_up` is
    the seconds of its first picture, which is not counted; `failed` why it drew none.
    """

    technique: str
    speedup: float = 0.0
    psnr: float = 0.0
    ssim: float = 0.0
    max_difference: int = 0
    pictures: int = 0
    warm_up: float = 0.0
    failed: str = ""


def refusal(trial: Trial, preset: Preset) -> str:
    """Why the preset may not use the technique; empty if it may."""
    gate = GATES[preset]
    if trial.failed:
        return f"it failed: {trial.failed}"
    if trial.warm_up > LONGEST_WARM_UP:
        return f"its first picture of a size takes {trial.warm_up:.0f} s, over {LONGEST_WARM_UP:g}"
    if trial.psnr < gate.psnr:
        return f"PSNR {trial.psnr:.1f} dB is below {gate.psnr:g}"
    if trial.ssim < gate.ssim:
        return f"SSIM {trial.ssim:.3f} is below {gate.ssim:g}"
    if trial.speedup < LEAST_SPEEDUP:
        return f"{trial.speedup:.2f} times the speed of exact is below {LEAST_SPEEDUP:g}"
    return ""


def chosen(trials: Sequence[Trial], preset: Preset) -> Trial | None:
    """The fastest technique that the preset may use."""
    passed = [trial for trial in trials if not refusal(trial, preset)]
    return max(passed, key=lambda trial: trial.speedup, default=None)


def hopeless(psnr: float, ssim: float) -> bool:
    """Whether a picture like this misses every gate."""
    return all(psnr < gate.psnr or ssim < gate.ssim for gate in GATES.values())


class Calibration(msgspec.Struct, frozen=True):
    """All trials of one model on one kind of device; `at` is a Unix time, `made_with` what they
    depend on (see `surroundings`)."""

    model: str
    device: str
    at: float
    made_with: dict[str, str]
    trials: tuple[Trial, ...]


def surroundings(card: ModelCard) -> dict[str, str]:
    """Whatever a calibration depends on, each in words that differ when it does."""
    return {
        "torch": importlib.metadata.version("torch"),
        "diffusers": importlib.metadata.version("diffusers"),
        "processor": _processor(),
        "model": _revision(card),
    }


def _processor() -> str:
    """The kinds of processors here, those of NVIDIA too."""
    found: set[str] = set()
    for path in (Path("/proc/cpuinfo"), *Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        found |= {
            line.partition(":")[2].strip()
            for line in lines
            if line.startswith(("model name", "Model:"))
        }
    return ", ".join(sorted(found)) or platform.processor() or platform.machine()


def _revision(card: ModelCard) -> str:
    """Differs after a change of the model's files, as their sizes and times tell, or of its card."""
    digest = hashlib.sha256(card.model_dump_json(include={"family", "dtype", "defaults"}).encode())
    if os.path.isfile(card.source):  # noqa: PTH113
        status = os.stat(card.source)  # noqa: PTH116
        digest.update(f"\n{status.st_size} {status.st_mtime_ns}".encode())
    for folder, _, files in sorted(os.walk(card.source)):
        for name in sorted(files):
            path = Path(folder, name)
            try:
                status = path.stat()
            except OSError:  # a link to nowhere
                continue
            inside = path.relative_to(card.source)
            digest.update(f"\n{inside} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


class Presets:
    """All calibrations of this installation. `device` is a kind of device, as in `PhaseTimes`.

    What another process stores in the file is seen at once. A model's files are looked at once: they
    are not expected to change while a server that holds them runs.
    """

    def __init__(
        self,
        file: Path,
        surroundings: Callable[[ModelCard], Mapping[str, str]] = surroundings,
    ) -> None:
        self._file = file
        self._surroundings = surroundings
        self._known: dict[tuple[str, str], Calibration] = {}
        self._around: dict[str, dict[str, str]] = {}
        self._version: tuple[int, ...] = ()

    def technique(self, card: ModelCard, device: str, preset: Preset) -> str:
        """What the preset adds to the plain model; nothing for "strict" and "exact".

        Raises InvalidRequest: nothing is allowed here.
        """
        trial = self.figures(card, device, preset)
        return "" if trial is None else trial.technique

    def figures(self, card: ModelCard, device: str, preset: Preset) -> Trial | None:
        """What was measured of the preset's technique; None for "strict" and "exact".

        Raises InvalidRequest: nothing is allowed here.
        """
        if preset not in GATES:
            return None
        self._read()
        calibration = self._known.get((card.id, device))
        command = f"run: easel bench calibrate {card.id}"
        if calibration is None:
            raise InvalidRequest(
                f"Preset {preset} of model {card.id} is not calibrated on this machine; {command}",
                param="preset",
            )
        if changed := self._changed(calibration, card):
            raise InvalidRequest(
                f"Preset {preset} of model {card.id} was calibrated with another "
                f"{' and another '.join(changed)}; {command}",
                param="preset",
            )
        trial = chosen(calibration.trials, preset)
        if trial is None:
            raise InvalidRequest(
                f"No technique is both faster than exact and close enough for preset {preset} of "
                f"model {card.id} on this machine; use exact.",
                param="preset",
            )
        return trial

    def shown(self, card: ModelCard, device: str) -> dict[str, dict[str, Any]]:
        """Every preset that the model has here, with its technique and what was measured of it."""
        found: dict[str, dict[str, Any]] = {}
        presets: tuple[Preset, ...] = get_args(Preset)
        for preset in presets:
            try:
                found[preset] = told(self.figures(card, device, preset))
            except InvalidRequest:
                continue
        return found

    def learn(self, calibration: Calibration) -> None:
        """Take in what was measured, in place of what was known, and store it. Raises OSError."""
        self._read()
        self._known[calibration.model, calibration.device] = calibration
        draft = self._file.with_suffix(".new")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(list(self._known.values())))
        draft.replace(self._file)

    def _changed(self, calibration: Calibration, card: ModelCard) -> list[str]:
        if card.id not in self._around:
            self._around[card.id] = dict(self._surroundings(card))
        now, then = self._around[card.id], calibration.made_with
        return [what for what in now if then.get(what) != now[what]]

    def _read(self) -> None:
        """Read the file anew if it is not the one that was read last."""
        version: tuple[int, ...] = ()
        stored: list[Calibration] = []
        try:
            status = self._file.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version == self._version:
                return
            stored = msgspec.json.decode(self._file.read_bytes(), type=list[Calibration])
        except FileNotFoundError:
            pass
        except (msgspec.DecodeError, OSError, UnicodeDecodeError):
            _log.warning("%s cannot be read; models must be calibrated anew", self._file.name)
        self._known = {(one.model, one.device): one for one in stored}
        self._around.clear()
        self._version = version


def told(trial: Trial | None) -> dict[str, Any]:
    """A preset's technique and figures, as answers and model lists tell them."""
    if trial is None:
        return {"technique": ""}
    return {
        "technique": trial.technique,
        "speedup": round(trial.speedup, 2),
        "psnr": round(trial.psnr, 1),
        "ssim": round(trial.ssim, 4),
        "max_difference": trial.max_difference,
        "pictures": trial.pictures,
    }
