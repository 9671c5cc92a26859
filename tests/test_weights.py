"""From a model's folder to a pipeline: nothing that could run code, and no half of a model.

Promised: whatever is wrong with a folder, loading says `ModelUnavailable` by the name of the model,
and no path and nothing of a loader's own words gets out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from app.domain.errors import ModelUnavailable
from app.domain.model_card import Defaults, ModelCard
from app.engines.weights import dtype_for, load_pipeline

BUNDLED = Path(__file__).parent.parent / "app" / "bundled_models" / "sketch"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLED, tmp_path / "a-model")


def card_for(folder: Path, dtype: str = "auto") -> ModelCard:
    card = ModelCard(
        id="painter",
        family="stable_diffusion",
        source=str(folder),
        defaults=Defaults(sampler="ddim"),
    )
    return card.model_copy(update={"dtype": dtype})


def refusal(folder: Path, kind: type = StableDiffusionPipeline) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(card_for(folder), kind, "cpu")
    message = caught.value.message
    assert "painter" in message
    assert "/" not in message
    assert folder.name not in message
    return message


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_whole_folder_is_loaded_in_one_precision(
    folder: Path, dtype: str, expected: torch.dtype
) -> None:
    pipeline = load_pipeline(card_for(folder, dtype), StableDiffusionPipeline, "cpu")
    assert type(pipeline) is StableDiffusionPipeline
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {expected}
        assert not part.training


@pytest.mark.parametrize(
    "name",
    [
        "pipeline.py",
        "unet/diffusion_pytorch_model.bin",
        "vae/weights.pt",
        "text_encoder/pytorch_model.pth",
        "model.ckpt",
        "unet/deep/down/weights.pkl",
        "unet/LOUD.BIN",
    ],
)
def test_a_folder_with_anything_that_could_run_code_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"print('hello')")
    assert "safetensors" in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-model").write_bytes(b"PK")
    refusal(tmp_path / "a-model")


@pytest.mark.parametrize(
    "index", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"text"', b'{"_class_name": 3}']
)
def test_a_damaged_index_is_refused(folder: Path, index: bytes) -> None:
    (folder / "model_index.json").write_bytes(index)
    refusal(folder)


def test_a_folder_of_another_kind_is_refused(folder: Path) -> None:
    assert "FluxPipeline" in refusal(folder, FluxPipeline)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 1000, -1000])
@pytest.mark.parametrize("name", [UNET, "text_encoder/model.safetensors"])
def test_weights_that_are_cut_short_are_refused(folder: Path, name: str, length: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:length])
    refusal(folder)


@pytest.mark.parametrize(
    "name",
    [UNET, "text_encoder/model.safetensors"],
)
def test_weights_that_lack_a_tensor_are_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / name)
    del tensors[sorted(tensors)[len(tensors) // 2]]
    save_file(tensors, folder / name, metadata={"format": "pt"})
    refusal(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_bytes())
    config["block_out_channels"] = [32, 64, 96]
    path.write_text(json.dumps(config))
    refusal(folder)


def test_an_index_that_names_foreign_code_is_refused(folder: Path) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_bytes())
    index["unet"] = ["evil", "UNet"]
    path.write_text(json.dumps(index))
    refusal(folder)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:0", torch.bfloat16),
        ("float16", "cuda:0", torch.float16),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_precision_is_the_card_s_or_the_device_s(
    dtype: str, device: str, expected: torch.dtype
) -> None:
    assert dtype_for(card_for(BUNDLED, dtype), device) is expected
