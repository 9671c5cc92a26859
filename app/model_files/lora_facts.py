"""What a file with a LoRA tells of itself in its header, and whether it may be loaded. Needs no torch.

A model's own weights are shared by all pictures, so a file that could change them is refused: one with
tensors that are no LoRA's, and one that wants to begin by changing the weights (PiSSA and such).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard
from app.model_files import headers

_MAX_HEADER = 32 * 1024 * 1024
"""Bytes. Trainers put the words of all their captions in there, which are some megabytes."""

_MAX_FILE = 8 * 1024**3
_MAX_TENSORS = 50_000
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

_TENSOR = re.compile(
    r"[\w./-]{1,300}?(?:"
    r"[._]lora(?:_linear_layer)?[._](?:A|B|up|down)(?:\.default)?\.(?:weight|bias)"
    r"|\.alpha|\.dora_scale|\.lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
)
"""Names as peft, diffusers and kohya's scripts give them."""

_SETTINGS = "lora_adapter_metadata"
"""Where diffusers keeps the settings of peft, as JSON."""

_NAMES = ("target_modules", "exclude_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_NUMBERS = ("r", "lora_alpha", "lora_dropout", "qalora_group_size")
_FLAGS = ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "inference_mode")
_WORDS_OF: Mapping[str, tuple[str, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": ("gaussian",),
    "megatron_core": ("megatron.core",),
}
"""Settings that matter here, or that every file has; all others must be absent, false or empty."""

_FREE = ("peft_version", "base_model_name_or_path", "revision", "task_type")
_MODULE = re.compile(r"[\w.^$\\/-]{1,300}")
"""Names of modules, and patterns of such as plain as names: peft compiles them."""

_UNET = ("down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block")
_BY_NAMES = (
    ("flux2", ("to_qkv_mlp_proj", "_stream_modulation")),
    ("flux", ("single_transformer_blocks", "single_blocks", "double_blocks")),
    ("qwen-image", ("img_mlp", "txt_mlp", "img_mod", "txt_mod")),
    ("sd3", ("joint_blocks",)),
    ("z-image", ("noise_refiner", "context_refiner")),
)
_BY_WORDS = (
    ("sdxl", r"stable-diffusion-xl|sdxl"),
    ("sd3", r"stable-diffusion-3|sd3"),
    ("sd2", r"stable-diffusion-v2|sd_v?2"),
    ("sd1", r"stable-diffusion-v1|sd_v?1"),
    ("flux2", r"flux[-_.]?2"),
    ("flux", r"flux"),
    ("qwen-image", r"qwen"),
    ("z-image", r"z[-_]image"),
    ("sana", r"sana"),
)
"""What trainers call the models, as regular expressions, the narrower ones first."""

_CONTEXTS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""How wide the words are that a UNet attends to."""

_WORDS, _LETTERS = 8, 100


class LoraFacts(msgspec.Struct, frozen=True):
    """`family` is one of `domain.pipelines.LORA_FAMILIES`, or "" where nothing tells; `trigger_words`
    are what the one who trained it says that prompts should hold."""

    family: str
    trigger_words: tuple[str, ...]
    bytes: int


def read(path: Path) -> LoraFacts:
    """Raises OSError; and ValueError for a file that must not be loaded, with the reason as the end of
    a sentence."""
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise ValueError(f"its file is larger than {_MAX_FILE // 1024**3} GB")
    try:
        tensors, told = headers.whole_header(path, _MAX_HEADER)
        headers.check(path)
    except ValueError as error:
        raise ValueError("its file is damaged, or no safetensors") from error
    if not tensors or len(tensors) > _MAX_TENSORS:
        raise ValueError("its file holds no LoRA")
    if not all(map(_TENSOR.fullmatch, tensors)):
        raise ValueError("its file holds tensors that are no LoRA's")
    if not all(one.get("dtype") in _DTYPES for one in tensors.values()):
        raise ValueError("its file holds tensors of a type that cannot be used")
    _check_settings(told)
    return LoraFacts(_family(tensors, told), _trigger_words(told), size)


def check_family(name: str, family: str, card: ModelCard) -> None:
    """Raises InvalidRequest: a LoRA of this family is not for the model."""
    if family and family not in card.kind.loras:
        raise InvalidRequest(
            f"LoRA {name} is for models of kind {family}, which {card.id} is not.", param="loras"
        )


def digest(path: Path) -> str:
    """SHA-256 of the tensors, in 64 hex digits: A1111's hash of a LoRA. Reads all of the file."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_settings(told: Mapping[str, str]) -> None:
    try:
        settings = json.loads(told.get(_SETTINGS) or "{}")
        bad = [name for name, one in settings.items() if not _harmless(name.split(".")[-1], one)]
    except (AttributeError, TypeError, RecursionError, ValueError) as error:
        raise ValueError("its file has settings that cannot be read") from error
    if bad:
        raise ValueError("its file has settings that are not supported")


def _harmless(name: str, value: Any) -> bool:
    if not value or name in _FREE:
        return True
    if name in _NAMES:
        return isinstance(value, list) and all(map(_MODULE.fullmatch, value))
    if name in _PATTERNS:
        numbers = all(isinstance(one, int | float) for one in value.values())
        return numbers and all(map(_MODULE.fullmatch, value))
    if name in _NUMBERS:
        return isinstance(value, int | float)
    if name in _FLAGS or (name == "init_lora_weights" and value is True):
        return value is True
    return isinstance(value, str) and value in _WORDS_OF.get(name, ())


def _family(tensors: Mapping[str, Mapping[str, Any]], told: Mapping[str, str]) -> str:
    if any(word in name for name in tensors for word in _UNET):
        return _unet(tensors)
    for family, words in _BY_NAMES:
        if any(word in name for name in tensors for word in words):
            return family
    said = f"{told.get('modelspec.architecture', '')} {told.get('ss_base_model_version', '')}"
    return next((family for family, words in _BY_WORDS if re.search(words, said.lower())), "")


def _unet(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    for name, tensor in tensors.items():
        if re.search(r"attn2[._].*to_k.*(?:down|lora_A)", name):
            shape = tensor.get("shape")
            width = shape[1] if isinstance(shape, list) and len(shape) > 1 else 0
            return _CONTEXTS.get(width, "unet") if isinstance(width, int) else "unet"
    return "unet"


def _trigger_words(told: Mapping[str, str]) -> tuple[str, ...]:
    """What is said to be so; else the commonest words of the captions that it was trained with."""
    said = (told.get("modelspec.trigger_phrase") or "").split(",")
    words = [word for one in said if (word := _clean(one))]
    if not words:
        try:
            counts: dict[str, float] = {}
            for folder in json.loads(told.get("ss_tag_frequency") or "{}").values():
                for tag, count in folder.items():
                    counts[tag] = counts.get(tag, 0.0) + float(count)
            common = sorted(counts, key=lambda tag: -counts[tag])[:_WORDS]
            words = [word for tag in common if (word := _clean(tag))]
        except (ValueError, TypeError, AttributeError, RecursionError):
            words = []
    return tuple(words[:_WORDS])


def _clean(text: str) -> str:
    """Words that anybody may be shown."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:_LETTERS]
