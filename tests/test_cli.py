"""The shell: real processes, real pictures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.measuring import show_trials
from app.presets import FILE_NAME, GATES, Presets, Trial
from app.scheduling.batch_profile import BatchProfiles
from app.settings import load_cards
from tests.control_house import CONTROL, build, by_hand
from tests.kinds import PROMPT
from tests.pictures import colour_at, corners, pixels


def easel(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        env={**os.environ, "EASEL_DATA_DIR": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def python_path() -> str:
    return str(Path(__file__).parents[1])


def test_generate_draws_without_a_server(tmp_path: Path) -> None:
    done = easel(
        *("generate", "a red circle on a white background", "--seed", "3", "-o", "circle.png"),
        folder=tmp_path,
        PYTHONPATH=python_path(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "circle.png  seed 3\n"
    picture = pixels((tmp_path / "circle.png").read_bytes())
    assert colour_at(picture, 0.5, 0.5) == "red"
    assert corners(picture) == {"white"}


def test_generate_enlarges_what_it_drew(tmp_path: Path) -> None:
    words = ("generate", "a red circle on a white background", "--seed", "3", "--upscale", "2")
    done = easel(*words, folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == 0, done.stderr
    picture = pixels((tmp_path / "out.png").read_bytes())
    assert picture.shape == (512, 512, 3)
    assert colour_at(picture, 0.5, 0.5) == "red"
    refused = easel(*words, "--upscaler", "none", folder=tmp_path, PYTHONPATH=python_path())
    assert (refused.returncode, "lanczos" in refused.stderr) == (2, True)


@pytest.mark.filterwarnings("ignore")
def test_generate_draws_under_control(tmp_path: Path) -> None:
    environment = {**build(tmp_path, ["sd"], ["canny"]), "PYTHONPATH": python_path()}
    CONTROL.save(tmp_path / "edges.png")
    how = ("--control", "canny", "--control-image", "edges.png", "--control-scale", "0.5")
    asked = ("--steps", "3", "--guidance-scale", "4", "--negative-prompt", "a blue hen")
    done = easel(*("generate", PROMPT, "--seed", "7", *asked, *how), folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    wanted = by_hand(tmp_path, "sd", "text2image", CONTROL, controlnet_conditioning_scale=0.5)
    assert (pixels((tmp_path / "out.png").read_bytes()) == wanted).all()
    listed = easel("controls", "--json", folder=tmp_path, **environment)
    told = {one["id"]: one["models"] for one in json.loads(listed.stdout)}
    assert told == {"canny": ["sd"]}
    files = json.loads(easel("models", "--json", folder=tmp_path, **environment).stdout)
    assert {one["id"]: one["state"] for one in files}["canny"] == "on_disk"


def test_generate_says_what_is_wrong(tmp_path: Path) -> None:
    done = easel("generate", "x", "--width", "9", folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode == 2
    assert "width must be between 128 and 512" in done.stderr
    assert not list(tmp_path.glob("*.png"))


def test_models_lists_the_cards(tmp_path: Path) -> None:
    done = easel("models", "--json", folder=tmp_path, PYTHONPATH=python_path())
    told = {card["id"]: card["state"] for card in json.loads(done.stdout)}
    assert {name for name, state in told.items() if state == "bundled"} == {"sketch", "sketch-flux"}
    assert told["sdxl"] == "not_downloaded"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"EASEL_PORT": "99999"}, "port"),
        ({"EASEL_DEFAULT_MODEL": "nothing"}, "nothing"),
        ({"EASEL_MODELS_DIR": "/nonexistent"}, "no model card"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    done = easel("serve", folder=tmp_path, PYTHONPATH=python_path(), **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = easel("serve", "--port", port, folder=tmp_path, PYTHONPATH=python_path())
    assert done.returncode != 0
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_with_a_mistake_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('id = "x"\nfamily = "none"\n')
    done = easel(
        "models", folder=tmp_path, PYTHONPATH=python_path(), EASEL_MODELS_DIR=str(tmp_path)
    )
    assert done.returncode == 2
    assert "broken.toml" in done.stderr


def small_flux(folder: Path) -> dict[str, str]:
    """The environment of an installation whose only real model draws small pictures in few steps."""
    card = load_cards(Path(python_path(), "config", "models"))["sketch-flux"]
    text = (
        f'id = "small"\nfamily = "flux"\nsource = "{card.source}"\n'
        "[defaults]\nwidth = 128\nheight = 128\nnum_inference_steps = 6\n"
        'guidance_scale = 0.0\nsampler = "euler"\nmax_sequence_length = 32\n'
    )
    paper = 'id = "paper"\nfamily = "fake"\nsource = "."\n[defaults]\nsampler = "euler"\n'
    cards = folder / "cards"
    cards.mkdir()
    (cards / "small.toml").write_text(text)
    (cards / "paper.toml").write_text(paper)
    return {
        "PYTHONPATH": python_path(),
        "EASEL_MODELS_DIR": str(cards),
        "EASEL_DEVICES": '["cpu"]',
    }


def test_calibrate_measures_refuses_and_stores(tmp_path: Path) -> None:
    environment = small_flux(tmp_path)
    tried = ("--technique", "first_block_cache=0.3", "--technique", "nonsense")
    done = easel(
        *("bench", "calibrate", "small", "--quick", "--json", *tried),
        folder=tmp_path,
        **environment,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cached, nonsense = told["trials"]
    assert cached["technique"] == "first_block_cache=0.3"
    assert cached["pictures"] >= 1
    assert cached["speedup"] > 0
    assert 0 < cached["psnr"] <= 99
    assert "cannot be drawn" in nonsense["failed"]
    assert set(told["presets"]) == set(GATES)
    # What is allowed is what the stored file allows to a server, which reads it in its own process.
    card = load_cards(tmp_path / "cards")["small"]
    presets = Presets(tmp_path / FILE_NAME)
    for preset in GATES:
        allowed = presets.shown(card, "cpu").get(preset)
        assert told["presets"][preset] == allowed


def test_calibrate_prints_why_a_technique_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rough = Trial(technique="rough", speedup=1.5, psnr=25.0, ssim=0.9, pictures=32)
    slow = Trial(technique="slow", speedup=0.9, psnr=60.0, ssim=1.0, pictures=32)
    broken = Trial(technique="broken", failed="no compiler")
    show_trials([rough, slow, broken])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["rough", "1.50x"]
    assert lines[1].split()[-2:] == ["refused", "passed"]
    assert lines[-3:] == [
        "rough is refused for balanced: PSNR 25.0 dB is below 30",
        "slow is refused for balanced and fast: 0.90 times the speed of exact is below 1.05",
        "broken is refused for balanced and fast: it failed: no compiler",
    ]


def test_profile_stores_what_the_server_reads(tmp_path: Path) -> None:
    done = easel(
        *("bench", "profile", "small", "--size", "160x128", "--json"),
        folder=tmp_path,
        **small_flux(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert (told["width"], told["height"]) == (160, 128)
    assert told["seconds"]["1"] > 0
    profiles = BatchProfiles(tmp_path / "batch_profiles.json")
    assert not profiles.wants("small", "cpu", 160, 128)
    assert profiles.cap("small", "cpu", 160, 128) == told["cap"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("calibrate", "nothing"), "there is no model nothing; models: paper, small"),
        (("calibrate", "paper"), "model: No technique is known for models of family fake."),
        (("profile", "nothing"), "there is no model nothing"),
        (("profile", "small", "--size", "large"), "--size must be like 512x512"),
        (("profile", "small", "--size", "9x9"), "width must be between"),
    ],
)
def test_bench_says_what_is_wrong(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = easel("bench", *words, folder=tmp_path, **small_flux(tmp_path))
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_plan_tells_how_a_model_would_fit(tmp_path: Path) -> None:
    done = easel("models", "plan", "flux-schnell", "--vram", "6", "--ram", "64", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flux-schnell: bfloat16, its layers take turns on the device; ")
    told = easel(
        *("models", "plan", "FLUX.1-schnell", "--vram", "48", "--ram", "64", "--json"),
        folder=tmp_path,
    )
    plan = json.loads(told.stdout)
    assert (plan["residency"], plan["weights"], plan["tiled"]) == ("resident", "bfloat16", False)
    assert 33e9 < plan["vram"] < 40e9
    small = easel("models", "plan", "flux-dev", "--vram", "2", "--ram", "64", folder=tmp_path)
    assert small.returncode == 1
    assert "at least" in small.stderr
    for words in (("nothing-here", "--vram", "8"), ("sdxl", "--vram", "8", "--dtype", "int3")):
        assert easel("models", "plan", *words, folder=tmp_path).returncode == 2
