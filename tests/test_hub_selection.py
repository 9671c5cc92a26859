"""Of all that repositories hold, exactly what a pipeline needs is fetched."""

from __future__ import annotations

import json

import pytest

from app.model_files.selection import parts_of, shards_of, variant_of, wanted, weights_of

INDEX = json.dumps(
    {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
).encode()

NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors",
    "text_encoder_2/model.safetensors.index.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/vocab.txt",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
]
OTHERS = [
    ".gitattributes",
    "README.md",
    "flux1-schnell.safetensors",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_2/model.fp16-00001-of-00002.safetensors",
    "text_encoder_2/model.safetensors.index.fp16.json",
    "text_encoder_2/pytorch_model.bin.index.json",
    "transformer/diffusion_pytorch_model.ckpt",
    "transformer/diffusion_pytorch_model.non_ema.safetensors",
    "transformer/model.py",
    "transformer/deep/config.json",
    "transformer/..",
    "../model_index.json",
    "unet/config.json",
]


def test_only_what_the_pipeline_needs() -> None:
    parts = parts_of(INDEX)
    assert set(parts) == {
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer_2",
        "transformer",
    }
    assert wanted([*OTHERS, *NEEDED], parts) == NEEDED


def test_a_part_can_come_without_its_weights() -> None:
    chosen = wanted([*OTHERS, *NEEDED], parts_of(INDEX), ("transformer",))
    assert chosen == [name for name in NEEDED if "diffusion_pytorch" not in name]


def test_half_precision_counts_only_where_there_is_no_other() -> None:
    half = ["config.json", "model.fp16.safetensors"]
    assert variant_of(half) == "fp16"
    assert weights_of(half) == ["model.fp16.safetensors"]
    both = [*half, "model.safetensors"]
    assert variant_of(both) == ""
    assert weights_of(both) == ["model.safetensors"]
    assert weights_of(["model.int8.safetensors", "pytorch_model.bin"]) == []


def test_a_whole_file_makes_its_shards_superfluous() -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert weights_of([*shards, "model.safetensors"]) == ["model.safetensors"]
    assert weights_of(shards) == shards


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"_class_name": 3, "unet": ["diffusers", "X"]}',
        b'{"_class_name": "X"}',
        b'{"_class_name": "X", "unet": ["diffusers"]}',
        b'{"_class_name": "X", "../unet": ["diffusers", "X"]}',
        b'{"_class_name": "X", "..": ["diffusers", "X"]}',
        b'{"_class_name": "X", "a/b": ["diffusers", "X"]}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_makes_no_sense_is_refused(index: bytes) -> None:
    with pytest.raises(ValueError, match="index"):
        parts_of(index)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": "../../etc/passwd"}}',
    ],
)
def test_an_index_of_shards_that_makes_no_sense_is_refused(index: bytes) -> None:
    with pytest.raises(ValueError, match="index"):
        shards_of(index)
