"""Measures what a technique gains and costs: the same pictures with and without it, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.domain.errors import EaselError, GenerationFailed, InvalidRequest
from app.domain.events import EngineEvent, ImageFinished
from app.domain.model_card import ModelCard
from app.domain.pipelines import Family
from app.domain.request import GenerationRequest, Preset
from app.engines import image_codec
from app.engines.base import Engine
from app.engines.image_codec import Pixels
from app.engines.weight_bytes import precision_for
from app.presets import Trial, hopeless

PROMPTS = (
    "a large red circle on a white background",
    "a small blue square on a yellow background",
    "a green triangle above a black circle",
    "two yellow stars on a dark blue background",
    "a landscape with mountains and a sunset",
    "a green hill under a blue sky with a white cloud",
    "the sea at night with a moon",
    "a desert with a red sun",
    "a photo of an old sailor with a grey beard, close up",
    "a bowl of ripe strawberries on a wooden table",
    "a narrow street in the rain, neon signs, reflections",
    "a watercolour of a fox asleep in the snow",
    "a poster that says OPEN in large letters",
    "an engraving of a sailing ship in a storm",
    "a crowded market seen from above",
    "a glass of water on a chequered cloth, studio light",
)
"""Frozen, so that figures of different days compare."""

SEEDS = (11, 12)

Subject = tuple[str, int]
"""A prompt and a seed."""

ALL: tuple[Subject, ...] = tuple((prompt, seed) for seed in SEEDS for prompt in PROMPTS)
QUICK: tuple[Subject, ...] = tuple((prompt, SEEDS[0]) for prompt in PROMPTS[::4])

_BLOCK_CACHES = tuple(f"first_block_cache={share}" for share in ("0.05", "0.1", "0.2", "0.4"))
_CANDIDATES: Mapping[Family, tuple[str, ...]] = {
    "stable_diffusion": ("bfloat16", "compile"),
    "flux": ("bfloat16", *_BLOCK_CACHES, "compile"),
    "diffusion_transformer": ("bfloat16", "compile"),
}

_IDENTICAL = 99.0
"""The PSNR of equal pictures, in dB: JSON has no infinity."""


def candidates(card: ModelCard, device: str) -> tuple[str, ...]:
    """The techniques that the model may profit from. Raises InvalidRequest: there are none."""
    found = _CANDIDATES.get(card.family, ())
    if not found:
        raise InvalidRequest(
            f"No technique is known for models of family {card.family}.", param="model"
        )
    if precision_for(card, device) != "float32":
        found = tuple(name for name in found if name != "bfloat16")
    return found


@dataclass(frozen=True)
class Closeness:
    """How close a picture is to another: dB, 0 to 1, and 0 to 255."""

    psnr: float
    ssim: float
    max_difference: int


def closeness(picture: Pixels, reference: Pixels) -> Closeness:
    one, other = picture.astype(np.float64), reference.astype(np.float64)
    error = float(np.mean((one - other) ** 2))
    psnr = min(_IDENTICAL, 10 * np.log10(255**2 / error)) if error else _IDENTICAL
    return Closeness(float(psnr), _ssim(_light(one), _light(other)), int(np.abs(one - other).max()))


def _light(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.array([0.299, 0.587, 0.114])
    light: NDArray[np.float64] = picture @ weights
    return light


def _ssim(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Structural similarity of two grey pictures, as Wang and others defined it in 2004."""
    steady, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_one, mean_other = _blurred(one), _blurred(other)
    variance_one = _blurred(one * one) - mean_one**2
    variance_other = _blurred(other * other) - mean_other**2
    covariance = _blurred(one * other) - mean_one * mean_other
    alike = (2 * mean_one * mean_other + steady) * (2 * covariance + contrast)
    largest = (mean_one**2 + mean_other**2 + steady) * (variance_one + variance_other + contrast)
    return float(np.mean(alike / largest))


def _blurred(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Under a Gaussian window of 11 x 11 with a deviation of 1.5; the margin is lost."""
    places = np.arange(11) - 5
    weights = np.exp(-(places**2) / (2 * 1.5**2))
    weights /= weights.sum()
    for _ in range(2):
        rows = len(picture) - len(weights) + 1
        window = np.zeros((rows, picture.shape[1]))
        for first, weight in enumerate(weights):
            window += weight * picture[first : first + rows]
        picture = window.T
    return picture


def clock_for(device: str) -> Callable[[], float]:
    """Seconds of a CPU's cores, which other programs do not lengthen; of another device, real ones."""
    return time.process_time if device == "cpu" else time.perf_counter


class Calibrator:
    """Tries techniques on a loaded engine that nobody else uses."""

    def __init__(
        self,
        engine: Engine,
        card: ModelCard,
        clock: Callable[[], float],
        subjects: Sequence[Subject] = ALL,
    ) -> None:
        self._engine = engine
        self._card = card
        self._clock = clock
        self._subjects = subjects
        self._strict: dict[Subject, Pixels] = {}

    def trial(self, technique: str, drawn: Callable[[int], None] = lambda count: None) -> Trial:
        """Draw every subject without, with, with and without the technique; `drawn` hears how many
        are done. One that fails, or misses every gate with one picture, is not tried further."""
        gains: list[float] = []
        worst: list[Closeness] = []
        try:
            self._draw(self._subjects[0], "exact")
            began = time.perf_counter()
            self._draw(self._subjects[0], "fast", technique)
            warm_up = time.perf_counter() - began
            for subject in self._subjects:
                _, before = self._draw(subject, "exact")
                first, seconds = self._draw(subject, "fast", technique)
                second, again = self._draw(subject, "fast", technique)
                _, after = self._draw(subject, "exact")
                gains.append((before + after) / (seconds + again))
                found = [closeness(one, self._reference(subject)) for one in (first, second)]
                worst += found
                drawn(len(gains))
                if any(hopeless(one.psnr, one.ssim) for one in found):
                    break
        except EaselError as error:
            return Trial(technique=technique, failed=error.message)
        except Exception as error:  # compilers and kernels raise whatever they like
            reason = next(iter(str(error).strip().splitlines()), "")
            return Trial(technique=technique, failed=f"{type(error).__name__}: {reason}"[:200])
        return Trial(
            technique=technique,
            speedup=statistics.median(gains),
            psnr=min(one.psnr for one in worst),
            ssim=min(one.ssim for one in worst),
            max_difference=max(one.max_difference for one in worst),
            pictures=len(gains),
            warm_up=warm_up,
        )

    def _reference(self, subject: Subject) -> Pixels:
        if subject not in self._strict:
            self._strict[subject] = self._draw(subject, "strict")[0]
        return self._strict[subject]

    def _draw(self, subject: Subject, preset: Preset, technique: str = "") -> tuple[Pixels, float]:
        """The picture at the model's defaults, and the seconds from the request to the file."""
        request = self._request(subject, preset, technique)
        images: list[bytes] = []

        def keep(event: EngineEvent) -> None:
            if isinstance(event, ImageFinished):
                images.append(event.image)

        began = self._clock()
        self._engine.generate(request, keep)
        seconds = self._clock() - began
        if not images:
            raise GenerationFailed("It drew no picture.")
        return np.asarray(image_codec.decode(images[0], "image").convert("RGB")), seconds

    def _request(self, subject: Subject, preset: Preset, technique: str) -> GenerationRequest:
        prompt, seed = subject
        plain = self._card.resolve(self._card.usual(prompt, seed=seed), draw_seed=lambda: seed)
        return msgspec.structs.replace(plain, preset=preset, technique=technique)
