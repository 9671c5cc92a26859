"""Models in one file: a checkpoint draws what its folder draws, and a quantised one nearly that."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from app.domain.errors import ModelUnavailable
from app.domain.model_card import Defaults, ModelCard
from app.engines.host_copy import HostCopy
from app.engines.weight_bytes import weight_bytes
from app.engines.weights import load_pipeline
from app.settings import BUNDLED
from tests import zoo
from tests.checkpoints import as_gguf, checkpoint

FLUX = BUNDLED / "sketch-flux"
FLUX_WEIGHTS = Path("transformer/diffusion_pytorch_model.safetensors")


def card_of(source: Path, base: Path, **given: Any) -> ModelCard:
    family = "flux" if "flux" in base.name else "stable_diffusion"
    sampler = "euler" if family == "flux" else "ddim"
    return ModelCard.model_validate(
        {
            "id": "single",
            "family": family,
            "source": str(source),
            "base": str(base),
            "defaults": Defaults(sampler=sampler),
            **given,
        }
    )


def bare(folder: Path, target: Path, *weights: str) -> Path:
    """A base as it is fetched: without the weights that are in the single file."""
    shutil.copytree(folder, target)
    for name in weights:
        for path in (target / name).glob("*.safetensors"):
            path.unlink()
    return target


def drawn(pipeline: Any, **given: Any) -> np.ndarray[Any, Any]:
    zoo.aligned(pipeline).set_progress_bar_config(disable=True)
    with torch.inference_mode():
        image = pipeline(
            "a red circle",
            width=128,
            height=128,
            num_inference_steps=4,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type="np",
            **given,
        ).images[0]
    found: np.ndarray[Any, Any] = image
    return found


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled models hold more than a checkpoint has names for."""
    zoo.forget()
    folder = tmp_path_factory.mktemp("sd") / "painter"
    zoo.pipeline("StableDiffusionPipeline").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd_file(sd: Path) -> Path:
    return checkpoint(sd, sd.with_name("painter.safetensors"))


@pytest.fixture(scope="module")
def sd_base(sd: Path) -> Path:
    return bare(sd, sd.with_name("base"), "unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def flux_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare(FLUX, tmp_path_factory.mktemp("base") / "sketch-flux", "transformer")


def test_a_checkpoint_draws_exactly_what_its_folder_draws(
    sd: Path, sd_file: Path, sd_base: Path
) -> None:
    card = card_of(sd_file, sd_base)
    pipeline = load_pipeline(card, StableDiffusionPipeline, "cpu")
    folder = card.model_copy(update={"source": str(sd), "base": ""})
    whole = load_pipeline(folder, StableDiffusionPipeline, "cpu")
    assert np.array_equal(drawn(pipeline), drawn(whole))
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
        assert not part.training


@pytest.mark.parametrize(("kind", "close"), [("Q8_0", 0.03), ("Q4_0", 0.2), ("F16", 0.002)])
def test_a_quantised_transformer_draws_nearly_the_same(
    tmp_path: Path, flux_base: Path, kind: str, close: float
) -> None:
    file = as_gguf(FLUX / FLUX_WEIGHTS, tmp_path / "flux.gguf", kind)
    card = card_of(file, flux_base)
    pipeline = load_pipeline(card, FluxPipeline, "cpu")
    folder = card.model_copy(update={"source": str(FLUX), "base": ""})
    whole = load_pipeline(folder, FluxPipeline, "cpu")
    given = {"guidance_scale": 0.0, "max_sequence_length": 32}
    picture, expected = drawn(pipeline, **given), drawn(whole, **given)
    assert float(np.abs(picture - expected).mean()) < close
    assert (kind == "F16") or not np.array_equal(picture, expected)
    size = weight_bytes(card, "cpu")
    assert size < weight_bytes(folder, "cpu")
    assert size > file.stat().st_size


def test_a_transformer_alone_takes_the_rest_from_its_base(tmp_path: Path, flux_base: Path) -> None:
    file = tmp_path / "flux.safetensors"
    shutil.copyfile(FLUX / FLUX_WEIGHTS, file)
    card = card_of(file, flux_base)
    pipeline = load_pipeline(card, FluxPipeline, "cpu")
    folder = card.model_copy(update={"source": str(FLUX), "base": ""})
    whole = load_pipeline(folder, FluxPipeline, "cpu")
    given = {"guidance_scale": 0.0, "max_sequence_length": 32}
    assert np.array_equal(drawn(pipeline, **given), drawn(whole, **given))
    assert weight_bytes(card, "cpu") == weight_bytes(folder, "cpu")


def test_the_size_is_that_of_the_folder(sd: Path, sd_file: Path, sd_base: Path) -> None:
    card = card_of(sd_file, sd_base)
    folder = card.model_copy(update={"source": str(sd), "base": ""})
    assert weight_bytes(card, "cpu") == weight_bytes(folder, "cpu") > 0
    whole_base = card.model_copy(update={"base": str(sd)})
    assert weight_bytes(whole_base, "cpu") == weight_bytes(folder, "cpu")


def refusal(card: ModelCard, kind: type = StableDiffusionPipeline) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(card, kind, "cpu")
    message = caught.value.message
    assert "single" in message
    assert "/" not in message
    return message


@pytest.mark.parametrize("length", [0, 4, 1000, -1000])
def test_files_that_are_cut_short_are_refused(
    tmp_path: Path, sd_file: Path, sd_base: Path, flux_base: Path, length: int
) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(sd_file.read_bytes()[:length])
    assert "cut short" in refusal(card_of(short, sd_base))
    file = as_gguf(FLUX / FLUX_WEIGHTS, tmp_path / "flux.gguf")
    file.write_bytes(file.read_bytes()[:length])
    refusal(card_of(file, flux_base), FluxPipeline)


def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path, sd_base: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "evil.safetensors"
    torch.save({"x": _Bomb(canary)}, file)
    refusal(card_of(file, sd_base))
    assert not canary.exists()


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    tmp_path: Path, sd_file: Path, sd_base: Path
) -> None:
    for some in ("model.diffusion_model.middle_block.0", "first_stage_model.decoder.conv_in"):
        tensors = load_file(sd_file)
        kept = {name: one for name, one in tensors.items() if not name.startswith(some)}
        assert len(kept) < len(tensors)
        save_file(kept, tmp_path / "less.safetensors", metadata={"format": "pt"})
        refusal(card_of(tmp_path / "less.safetensors", sd_base))


def test_a_transformer_that_lacks_a_tensor_is_refused(tmp_path: Path, flux_base: Path) -> None:
    tensors = load_file(FLUX / FLUX_WEIGHTS)
    del tensors["proj_out.weight"]
    save_file(tensors, tmp_path / "less.safetensors", metadata={"format": "pt"})
    file = as_gguf(tmp_path / "less.safetensors", tmp_path / "less.gguf")
    refusal(card_of(file, flux_base), FluxPipeline)


def test_weights_of_another_shape_are_refused(
    tmp_path: Path, sd: Path, sd_file: Path, flux_base: Path
) -> None:
    base = bare(sd, tmp_path / "base", "unet", "vae", "text_encoder")
    path = base / "unet" / "config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps({**config, "block_out_channels": [8, 24]}))
    refusal(card_of(sd_file, base))
    other = load_file(FLUX / FLUX_WEIGHTS)
    other["x_embedder.weight"] = other["x_embedder.weight"][:, :8].contiguous()
    save_file(other, tmp_path / "flux.safetensors", metadata={"format": "pt"})
    refusal(card_of(tmp_path / "flux.safetensors", flux_base), FluxPipeline)


def test_a_base_that_lacks_something_or_holds_code_is_refused(
    tmp_path: Path, sd: Path, sd_file: Path
) -> None:
    base = bare(sd, tmp_path / "base", "unet", "vae", "text_encoder")
    (base / "pipeline.py").write_text("print('hello')")
    assert "safetensors" in refusal(card_of(sd_file, base))
    (base / "pipeline.py").unlink()
    shutil.rmtree(base / "tokenizer")
    refusal(card_of(sd_file, base))
    refusal(card_of(sd_file, tmp_path / "nowhere"))


def test_what_is_no_transformer_does_not_come_as_gguf(tmp_path: Path, sd_base: Path) -> None:
    file = as_gguf(FLUX / FLUX_WEIGHTS, tmp_path / "flux.gguf")
    assert "GGUF" in refusal(card_of(file, sd_base))


def test_quantised_weights_can_wait_in_host_memory(tmp_path: Path, flux_base: Path) -> None:
    file = as_gguf(FLUX / FLUX_WEIGHTS, tmp_path / "flux.gguf", "Q4_0")
    pipeline = load_pipeline(card_of(file, flux_base), FluxPipeline, "cpu")
    given = {"guidance_scale": 0.0, "max_sequence_length": 32}
    before = drawn(pipeline, **given)
    copy = HostCopy([pipeline.transformer], "cpu", pin=True)
    copy.to_host()
    copy.to_device()
    assert np.array_equal(drawn(pipeline, **given), before)
