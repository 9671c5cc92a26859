"""The size of a model, told by its files before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.engines.weight_bytes import weight_bytes
from app.settings import load_cards
from tests.paper_models import paper_model, safetensors

CARDS = load_cards(Path(__file__).parent.parent / "config" / "models")


@pytest.mark.parametrize("name", ["sketch", "sketch-flux"])
@pytest.mark.parametrize(("dtype", "device"), [("auto", "cpu"), ("bfloat16", "cpu")])
def test_it_is_what_the_loaded_weights_take(name: str, dtype: str, device: str) -> None:
    import torch
    from diffusers import FluxPipeline, StableDiffusionPipeline

    from app.engines.weights import load_pipeline

    card = CARDS[name].model_copy(update={"dtype": dtype})
    kind = FluxPipeline if card.family == "flux" else StableDiffusionPipeline
    pipeline = load_pipeline(card, kind, device)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    loaded = sum(weight.nbytes for part in parts for weight in part.parameters())
    loaded += sum(
        buffer.nbytes
        for part in parts
        for key, buffer in part.named_buffers()
        if key in part.state_dict()
    )
    assert weight_bytes(card, device) == pytest.approx(loaded, rel=0.01)


def test_half_precision_takes_half(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a", 8).model_copy(update={"dtype": "auto"})
    assert weight_bytes(card, "cpu") == 8_000_000
    assert weight_bytes(card, "cuda:0") == 4_000_000


def test_shards_count_once_and_variants_and_strangers_not_at_all(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a")
    unet = Path(card.source) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    for shard in ("one", "two", "stranger", "diffusion_pytorch_model.fp16"):
        safetensors(unet / f"{shard}.safetensors", {"w": ("F16", [3, 5])})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(Path(card.source) / "leftover" / "model.safetensors", {"w": ("F32", [1000])})
    assert weight_bytes(card, "cpu") == 2 * 15 * 4


def test_only_numbers_to_compute_with_change_their_width(tmp_path: Path) -> None:
    card = paper_model(tmp_path, "a")
    safetensors(
        Path(card.source) / "unet" / "diffusion_pytorch_model.safetensors",
        {
            "half": ("BF16", [10]),
            "eight": ("F8_E4M3", [10]),
            "ids": ("I64", [10]),
            "mask": ("BOOL", [10]),
            "scalar": ("F64", []),
        },
    )
    assert weight_bytes(card, "cpu") == 40 + 40 + 80 + 10 + 4


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff" * 8,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{",
        b"\x09\0\0\0\0\0\0\0" + b'{"a": 17}',
        b"\x23\0\0\0\0\0\0\0" + b'{"a": {"dtype": "F4", "shape": 17}}',
    ],
)
def test_files_that_tell_nothing_are_no_error(tmp_path: Path, damage: bytes) -> None:
    card = paper_model(tmp_path, "a", 8)
    (Path(card.source) / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(damage)
    assert weight_bytes(card, "cpu") == 0


@pytest.mark.parametrize("index", ["", "[]", "null", '{"unet": 5}'])
def test_an_index_that_tells_nothing_is_no_error(tmp_path: Path, index: str) -> None:
    card = paper_model(tmp_path, "a", 8)
    (Path(card.source) / "model_index.json").write_text(index)
    assert weight_bytes(card, "cpu") == 0


def test_the_files_are_asked_without_torch() -> None:
    code = "import app.engines.weight_bytes, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_before_the_files_are_there_the_card_tells(tmp_path: Path) -> None:
    counts = {"parameters": {"unet": 1000, "vae": 10}}
    card = paper_model(tmp_path, "a").model_copy(update=counts)
    assert weight_bytes(card, "cpu") != 1010 * 4
    absent = card.model_copy(update={"source": str(tmp_path / "nowhere"), "dtype": "auto"})
    assert weight_bytes(absent, "cpu") == 1010 * 4
    assert weight_bytes(absent, "cuda:0") == 1010 * 2
