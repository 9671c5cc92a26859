"""What a picture tells of how it was drawn: Easel's own names, and the text of AUTOMATIC1111's.

Our own names say everything and mean one thing. The text is what other programs read; it has no
quoting, so a prompt with a line "Negative prompt: …" reads differently there.
"""

from __future__ import annotations

import json
import re

import msgspec

from app import __version__
from app.domain import samplers
from app.domain.lora import as_prompt
from app.domain.request import GenerationRequest

PARAMETERS = "parameters"
"""The name of A1111's text among the others."""

_SETTING = re.compile(r'(\w[\w \-/]{1,63}): *("(?:\\.|[^\\"])++"|[^,]*)(?:,|$)')
"""The original's, but as quick as a text is short, whoever wrote it."""

_OWN_NAMES = {
    "Steps": "num_inference_steps",
    "Sampler": "sampler",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Size": "size",
    "Model": "model",
    "Model hash": "model_hash",
    "Denoising strength": "strength",
    "Style": "style",
    "Version": "software",
}
_HASH_SHOWN, _LORA_HASH_SHOWN = 10, 12
"""Digits, as many as A1111 shows."""


class Origin(msgspec.Struct, frozen=True):
    """What an engine knows beside the request: its weights, libraries as "torch 2.13.0", and of each
    LoRA the name and the hash."""

    model_revision: str = ""
    model_hash: str = ""
    libraries: tuple[str, ...] = ()
    loras: tuple[tuple[str, str], ...] = ()


def about(request: GenerationRequest, seed: int, origin: Origin) -> dict[str, str]:
    """All that the picture with this seed tells, in the order to show it; nothing if it shall not."""
    if not request.metadata:
        return {}
    edit = request.task != "text2image"
    told = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": str(seed),
        "model": request.model,
        "requested_model": request.requested_model,
        "model_revision": origin.model_revision,
        "model_hash": origin.model_hash,
        "sampler": request.sampler,
        "num_inference_steps": str(request.num_inference_steps),
        "guidance_scale": _number(request.guidance_scale),
        "true_cfg_scale": _number(request.true_cfg_scale) if request.true_cfg_scale != 1 else "",
        "size": request.size,
        "task": request.task if edit else "",
        "strength": _number(request.strength) if edit else "",
        **(_control(request) if request.control else {}),
        "preset": request.preset if request.preset != "exact" else "",
        "technique": request.technique,
        "style": request.style,
        "loras": ", ".join(f"{one.name}:{_number(one.scale)}" for one in request.loras),
        "lora_hashes": _hashes(origin),
        "software": ", ".join((f"easel {__version__}", *origin.libraries)),
        PARAMETERS: parameters(request, seed, origin.model_hash, _hashes(origin)),
    }
    return {name: text for name, text in told.items() if text}


def _control(request: GenerationRequest) -> dict[str, str]:
    return {
        "control": request.control,
        "controlnet_conditioning_scale": _number(request.controlnet_conditioning_scale),
        "control_guidance_start": _number(request.control_guidance_start),
        "control_guidance_end": _number(request.control_guidance_end),
    }


def _hashes(origin: Origin) -> str:
    return ", ".join(f"{name}: {digest[:_LORA_HASH_SHOWN]}" for name, digest in origin.loras)


def parameters(
    request: GenerationRequest, seed: int, model_hash: str = "", lora_hashes: str = ""
) -> str:
    """The same as A1111 writes it into its pictures. It has the LoRAs in the prompt."""
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    shown = f"Model hash: {model_hash[:_HASH_SHOWN]}, " if model_hash else ""
    edit = request.task != "text2image"
    strength = f", Denoising strength: {_number(request.strength)}" if edit else ""
    style = f", Style: {request.style}" if request.styled else ""
    hashes = f', Lora hashes: "{lora_hashes}"' if lora_hashes else ""
    loras = f" {as_prompt(request.loras)}" if request.loras else ""
    return (
        f"{request.prompt}{loras}{negative}\nSteps: {request.num_inference_steps}, "
        f"Sampler: {samplers.spelled(request.sampler)}, "
        f"CFG scale: {_number(request.guidance_scale)}, Seed: {seed}, Size: {request.size}, "
        f"{shown}Model: {request.model}{strength}{style}{hashes}, Version: Easel {__version__}"
    ).strip()


def read_parameters(text: str) -> tuple[dict[str, str], bool]:
    """What A1111's text tells, in our names where we have them, and whether it holds settings.

    The rules are the original's: the last line holds settings if it has three or more.
    """
    lines = text.strip().split("\n")
    found = _SETTING.findall(lines[-1])
    settings = {_OWN_NAMES.get(name, name): _unquoted(value) for name, value in found}
    if len(found) < 3:
        settings = {}
    else:
        lines.pop()
    marks = (at for at, line in enumerate(lines) if line.startswith("Negative prompt:"))
    at = next(marks, len(lines))
    negative = "\n".join(lines[at:]).removeprefix("Negative prompt:").strip()
    prompts = {"prompt": "\n".join(lines[:at]).strip(), "negative_prompt": negative}
    told = {**prompts, **settings, **prompts}  # first by order, and not overruled by a setting
    return {name: value for name, value in told.items() if value}, bool(settings)


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value.strip()


def _number(value: float) -> str:
    """As short as it can be without becoming another number."""
    return repr(float(value)).removesuffix(".0")
