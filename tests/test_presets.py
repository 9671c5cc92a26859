"""What was measured, and what presets may make of it.

Promised: exact needs no measurement; nothing slower, farther off or never measured is used; what was
measured under other circumstances does not count; a damaged file costs presets and nothing else.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.domain.request import Preset
from app.presets import Calibration, Presets, Trial, chosen, refusal, surroundings
from app.settings import load_cards

CARDS = load_cards(Path(__file__).parents[1] / "config" / "models")
CARD = CARDS["sketch-flux"]
AROUND = {"torch": "2", "diffusers": "1", "processor": "abacus", "model": "a"}

GOOD = Trial(technique="good", speedup=1.2, psnr=40.0, ssim=0.99, max_difference=9, pictures=32)
ROUGH = Trial(technique="rough", speedup=1.8, psnr=25.0, ssim=0.9, max_difference=90, pictures=32)


def calibrated(*trials: Trial, device: str = "cpu", **around: str) -> Calibration:
    return Calibration(CARD.id, device, 1.0, {**AROUND, **around}, trials)


def presets_in(folder: Path, **around: str) -> Presets:
    return Presets(folder / "presets.json", lambda card: {**AROUND, **around})


def refused(presets: Presets, preset: Preset = "balanced", device: str = "cpu") -> str:
    with pytest.raises(InvalidRequest) as caught:
        presets.technique(CARD, device, preset)
    assert caught.value.param == "preset"
    return caught.value.message


def test_strict_and_exact_need_no_measurement(tmp_path: Path) -> None:
    presets = presets_in(tmp_path)
    assert presets.technique(CARD, "cpu", "strict") == ""
    assert presets.technique(CARD, "cpu", "exact") == ""
    assert presets.shown(CARD, "cpu") == {"strict": {"technique": ""}, "exact": {"technique": ""}}


def test_what_was_not_measured_here_is_refused(tmp_path: Path) -> None:
    presets = presets_in(tmp_path)
    presets.learn(calibrated(GOOD))
    assert "easel bench calibrate sketch-flux" in refused(presets, device="cuda")
    assert "not calibrated on this machine" in refused(presets, "fast", device="cuda")
    with pytest.raises(InvalidRequest, match="bench calibrate sketch"):
        presets.technique(CARDS["sketch"], "cpu", "balanced")


def test_a_preset_uses_the_fastest_that_passes_its_gate(tmp_path: Path) -> None:
    slower = msgspec.structs.replace(GOOD, technique="slower", speedup=1.1, psnr=60.0)
    presets = presets_in(tmp_path)
    presets.learn(calibrated(slower, GOOD, ROUGH))
    assert presets.technique(CARD, "cpu", "balanced") == "good"
    assert presets.technique(CARD, "cpu", "fast") == "rough"
    assert presets.figures(CARD, "cpu", "fast") == ROUGH
    assert presets.shown(CARD, "cpu")["balanced"] == {
        "technique": "good",
        "speedup": 1.2,
        "psnr": 40.0,
        "ssim": 0.99,
        "max_difference": 9,
        "pictures": 32,
    }


@pytest.mark.parametrize(
    ("change", "word", "fast_too"),
    [
        ({"speedup": 1.04}, "1.04 times", True),
        ({"psnr": 29.9}, "PSNR 29.9", False),
        ({"psnr": 23.9}, "PSNR 23.9", True),
        ({"ssim": 0.949}, "SSIM 0.949", False),
        ({"ssim": 0.849}, "SSIM 0.849", True),
        ({"warm_up": 91.0}, "first picture", True),
        ({"failed": "no compiler"}, "no compiler", True),
    ],
)
def test_a_technique_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, float | str], word: str, fast_too: bool
) -> None:
    trial = msgspec.structs.replace(GOOD, **change)
    assert word in refusal(trial, "balanced")
    assert (word in refusal(trial, "fast")) is fast_too
    assert chosen([trial], "balanced") is None
    presets = presets_in(tmp_path)
    presets.learn(calibrated(trial))
    assert "use exact" in refused(presets)
    assert "balanced" not in presets.shown(CARD, "cpu")


def test_gates_let_pass_what_just_reaches_them() -> None:
    just = Trial(technique="just", speedup=1.05, psnr=30.0, ssim=0.95, warm_up=90.0)
    assert refusal(just, "balanced") == refusal(just, "fast") == ""


def test_what_another_process_stores_is_seen_at_once_and_survives(tmp_path: Path) -> None:
    server = presets_in(tmp_path)
    refused(server)
    presets_in(tmp_path).learn(calibrated(GOOD))
    assert server.technique(CARD, "cpu", "balanced") == "good"
    presets_in(tmp_path).learn(calibrated(ROUGH, device="cuda"))
    presets_in(tmp_path).learn(calibrated(ROUGH))
    assert server.technique(CARD, "cpu", "fast") == "rough"
    assert server.technique(CARD, "cuda", "fast") == "rough"
    assert "use exact" in refused(server)
    (tmp_path / "presets.json").unlink()
    assert "not calibrated" in refused(server)


@pytest.mark.parametrize("damage", [b"", b"{", b"[{}]", b"\xff\xfe", b'[{"model": 3}]'])
def test_a_damaged_file_costs_presets_and_nothing_else(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "presets.json").write_bytes(damage)
    presets = presets_in(tmp_path)
    assert presets.technique(CARD, "cpu", "exact") == ""
    assert "not calibrated" in refused(presets)
    presets.learn(calibrated(GOOD))
    assert presets_in(tmp_path).technique(CARD, "cpu", "balanced") == "good"


def test_a_file_that_cannot_be_replaced_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets_in(tmp_path).learn(calibrated(GOOD))

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            presets_in(tmp_path).learn(calibrated(ROUGH))
    assert presets_in(tmp_path).technique(CARD, "cpu", "balanced") == "good"


@pytest.mark.parametrize("what", list(AROUND))
def test_what_was_measured_under_other_circumstances_does_not_count(
    tmp_path: Path, what: str
) -> None:
    presets_in(tmp_path).learn(calibrated(GOOD))
    message = refused(presets_in(tmp_path, **{what: "another"}))
    assert f"another {what}" in message
    assert "easel bench calibrate" in message


def test_the_circumstances_are_the_files_and_what_the_card_makes_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(CARD.source) / "scheduler", folder / "scheduler")
    card = CARD.model_copy(update={"source": str(folder)})
    first = surroundings(card)
    assert set(first) == set(AROUND)
    assert all(first.values())

    def changed(card: ModelCard = card) -> set[str]:
        now = surroundings(card)
        return {what for what in now if now[what] != first[what]}

    assert changed() == set()
    assert changed(card.model_copy(update={"title": "another"})) == set()
    steps = card.defaults.model_copy(update={"num_inference_steps": 3})
    assert changed(card.model_copy(update={"defaults": steps})) == {"model"}
    assert changed(card.model_copy(update={"dtype": "bfloat16"})) == {"model"}
    file = folder / "scheduler" / "scheduler_config.json"
    os.utime(file, (1, 1))
    assert changed() == {"model"}
