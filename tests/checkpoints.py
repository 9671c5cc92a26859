"""Writes models as single files, in the manner of the programs that such files come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_VAE_WORDS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0.": "mid.attn_1.",
    "attn_1.group_norm": "attn_1.norm",
    "attn_1.to_q": "attn_1.q",
    "attn_1.to_k": "attn_1.k",
    "attn_1.to_v": "attn_1.v",
    "attn_1.to_out.0": "attn_1.proj_out",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def checkpoint(folder: Path, file: Path) -> Path:
    """A Stable Diffusion folder as one `.safetensors`, with the names of the first implementation."""
    tensors: dict[str, Tensor] = {}
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    layers = 1 + max(int(m[1]) for name in unet if (m := re.search(r"down\S+resnets\.(\d+)", name)))
    attended = {name.split(".attentions.")[0] for name in unet if ".attentions." in name}
    for name, tensor in unet.items():
        tensors["model.diffusion_model." + _unet_name(name, layers, attended)] = tensor
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    blocks = 1 + max(int(m[1]) for name in vae if (m := re.search(r"up_blocks\.(\d+)", name)))
    for name, tensor in vae.items():
        tensors["first_stage_model." + _vae_name(name, blocks)] = tensor
    text = load_file(folder / "text_encoder" / "model.safetensors")
    for name, tensor in text.items():
        bare = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{bare}"] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    per_block = layers + 1
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, what, layer, rest = match.groups()
        place = 1 + int(block) * per_block + int(layer)
        return f"input_blocks.{place}.{_within(what, rest)}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * per_block}.0.op.{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, what, layer, rest = match.groups()
        return f"output_blocks.{int(block) * per_block + int(layer)}.{_within(what, rest)}"
    if match := re.match(r"(up_blocks\.(\d+))\.upsamplers\.0\.conv\.(.*)", name):
        place = 2 if match[1] in attended else 1
        return f"output_blocks.{int(match[2]) * per_block + layers}.{place}.conv.{match[3]}"
    if match := re.match(r"mid_block\.attentions\.0\.(.*)", name):
        return f"middle_block.1.{match[1]}"
    match = re.match(r"mid_block\.resnets\.(\d+)\.(.*)", name)
    assert match, name
    return f"middle_block.{2 * int(match[1])}.{_resnet(match[2])}"


def _within(what: str, rest: str) -> str:
    return f"0.{_resnet(rest)}" if what == "resnets" else f"1.{rest}"


def _resnet(rest: str) -> str:
    part, _, end = rest.partition(".")
    return f"{_RESNET[part]}.{end}"


def _vae_name(name: str, blocks: int) -> str:
    for pattern, theirs in (
        (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    ):
        name = re.sub(pattern, theirs, name)
    if match := re.match(
        r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.(.*)", name
    ):
        place = blocks - 1 - int(match[1])
        inside = "upsample" if match[2] is None else f"block.{match[2]}"
        name = f"decoder.up.{place}.{inside}.{match[3]}"
    name = re.sub(
        r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name
    )
    for ours, theirs in _VAE_WORDS.items():
        name = name.replace(ours, theirs)
    return name


def as_gguf(weights: Path, file: Path, kind: str = "Q8_0") -> Path:
    """A transformer's weights as GGUF: matrices in blocks of `kind`, everything else as it is."""
    quantised = gguf.GGMLQuantizationType[kind]
    writer: Any = gguf.GGUFWriter(str(file), "flux")
    for name, tensor in load_file(weights).items():
        values = tensor.to(torch.float32).numpy()
        block = gguf.GGML_QUANT_SIZES[quantised][0]
        if values.ndim == 2 and values.shape[1] % block == 0:
            packed = gguf.quants.quantize(values, quantised)
            writer.add_tensor(name, packed, raw_dtype=quantised)
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
