"""How techniques are measured: on an engine whose speed and pictures are known beforehand.

Promised: exact and technique take turns, the first picture is not counted; a technique is as close
as its worst picture and stops where none of it can pass; what fails is told and hurts nobody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from app.domain.errors import InvalidRequest, OutOfMemory
from app.domain.events import ImageFinished
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest
from app.engines.base import ALONE, Report, Sharing
from app.engines.calibration import ALL, QUICK, Calibrator, candidates, clock_for, closeness
from app.engines.image_codec import Pixels, encode_png
from app.presets import hopeless
from app.settings import load_cards

CARDS = load_cards(Path(__file__).parents[1] / "config" / "models")
CARD = CARDS["sketch-flux"]
SUBJECTS = QUICK[:3]


def grey(level: int) -> Pixels:
    return np.full((32, 32, 3), level, np.uint8)


class Pretender:
    """Draws grey: 100, and brighter by a technique's number. A picture takes two seconds, and half of
    that with a technique; every seventh takes ten times as long."""

    memory = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.drawn: list[str] = []

    def load(self, card: ModelCard, device: str) -> None: ...

    def unload(self) -> None: ...

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        return {}

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        name, _, number = request.technique.partition("=")
        if name == "full":
            raise OutOfMemory("The device has no room for this request.")
        if name == "broken":
            raise RuntimeError("no compiler\nat 0x7f")
        seconds = 1.0 if name else 2.0
        self.now += seconds * (10.0 if len(self.drawn) % 7 == 6 else 1.0)
        self.drawn.append(request.technique or request.preset)
        worse = 30 if name == "once" and request.prompt == SUBJECTS[1][0] else 0
        picture = grey(100 + int(number or 0) + worse)
        report(ImageFinished(0, encode_png(picture, {}), request.seed, "image/png", 1))


def calibrator(engine: Pretender) -> Calibrator:
    return Calibrator(engine, CARD, lambda: engine.now, SUBJECTS)


def test_exact_and_technique_take_turns_after_a_picture_that_does_not_count() -> None:
    engine, heard = Pretender(), list[int]()
    trial = calibrator(engine).trial("grey=2", heard.append)
    turns = [name for name in engine.drawn if name != "strict"]
    assert turns == ["exact", "grey=2"] + ["exact", "grey=2", "grey=2", "exact"] * 3
    assert heard == [1, 2, 3]
    assert trial.pictures == 3
    assert trial.speedup == pytest.approx(2.0)  # a pause of the machine moves no median
    assert trial.max_difference == 2
    assert trial.psnr == pytest.approx(10 * np.log10(255**2 / 4))
    assert trial.failed == ""


def test_strict_is_drawn_once_for_all_techniques() -> None:
    engine = Pretender()
    both = calibrator(engine)
    both.trial("grey=2")
    both.trial("grey=3")
    assert engine.drawn.count("strict") == len(SUBJECTS)


def test_equal_pictures_have_a_finite_figure() -> None:
    trial = calibrator(Pretender()).trial("grey")
    assert (trial.psnr, trial.ssim, trial.max_difference) == (99.0, 1.0, 0)


def test_the_worst_picture_counts_and_one_that_is_spoilt_is_the_last() -> None:
    engine = Pretender()
    trial = calibrator(engine).trial("once")
    assert trial.pictures == 2
    assert trial.max_difference == 30
    assert hopeless(trial.psnr, trial.ssim)


@pytest.mark.parametrize(
    ("technique", "told"),
    [
        ("full", "The device has no room for this request."),
        ("broken", "RuntimeError: no compiler"),
    ],
)
def test_what_fails_is_told_and_the_next_is_tried(technique: str, told: str) -> None:
    both = calibrator(Pretender())
    assert both.trial(technique).failed == told
    assert both.trial("grey=1").pictures == len(SUBJECTS)


def test_the_pictures_are_frozen() -> None:
    assert len(ALL) == len(set(ALL)) == 32
    assert len({prompt for prompt, _ in ALL}) == 16
    assert len(QUICK) == 4
    assert set(QUICK) < set(ALL)


def test_techniques_fit_the_model() -> None:
    assert candidates(CARDS["sketch"], "cpu") == ("bfloat16", "compile")
    assert "first_block_cache=0.1" in candidates(CARD, "cpu")
    assert "bfloat16" not in candidates(CARD, "cuda:0")  # it is that already
    with pytest.raises(InvalidRequest):
        candidates(CARD.model_copy(update={"family": "fake"}), "cpu")


def test_a_cpu_is_measured_by_what_its_cores_did() -> None:
    clock = clock_for("cpu")
    began = clock()
    sum(range(1_000_000))
    assert clock() > began
    idle = clock()
    time.sleep(0.3)
    assert clock() - idle < 0.25
    assert clock_for("cuda:0") is not clock


def test_ssim_is_that_of_the_paper() -> None:
    chance = np.random.default_rng(5)
    one, other = (chance.integers(0, 256, (11, 11, 3)).astype(np.uint8) for _ in range(2))
    # One window covers all of it, so its formula can be written out.
    bell = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weights = np.outer(bell, bell) / np.outer(bell, bell).sum()
    x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (one, other))
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
    both = (weights * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    by_hand = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert closeness(one, other).ssim == pytest.approx(by_hand)
    assert closeness(one, one).ssim == pytest.approx(1.0)


def test_psnr_and_difference_by_hand() -> None:
    one = grey(100)
    other = one.copy()
    other[0, 0, 0] = 0  # one value of 3072 is off by 100
    found = closeness(other, one)
    assert found.psnr == pytest.approx(10 * np.log10(255**2 * 3072 / 100**2))
    assert found.max_difference == 100
    assert closeness(one, other).max_difference == 100
