"""LoRAs: small files that change how a model draws, each known by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from app.domain.errors import InvalidRequest

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What a LoRA may be called: a file's name without its end, and never a path."""

MAX_SCALE = 10.0
"""In both directions. Some are trained as sliders, which go to 5 or so and below zero."""

KEPT_BYTES = 1_000_000_000
"""What a loaded model keeps of LoRAs, if nothing else is said."""

_PREFIX = "loras/"
_NAME = re.compile(NAME)
_TAG = re.compile(r"<lora:([^<>]{1,200})>")


class Lora(msgspec.Struct, frozen=True):
    """One LoRA and how strongly it acts; 0 is not at all. `file` is where it lies: only a worker is
    told that, and no request that is kept holds it."""

    name: str
    scale: float = 1.0
    file: str = ""


def lora_id(name: str) -> str:
    """What the shelf of all models knows a LoRA by."""
    return f"{_PREFIX}{name}"


def checked(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """The same, each by its name alone. Raises InvalidRequest: a name or a scale cannot be one, or a
    name comes twice."""
    for one in loras:
        if not _NAME.fullmatch(one.name):
            raise InvalidRequest(
                "A LoRA's name has letters, digits, dots, dashes and underscores.", param="loras"
            )
        if not -MAX_SCALE <= one.scale <= MAX_SCALE:  # NaN is not within anything
            raise InvalidRequest(
                f"A LoRA's scale must be between -{MAX_SCALE:g} and {MAX_SCALE:g}.", param="loras"
            )
    if len({one.name for one in loras}) < len(loras):
        raise InvalidRequest("A LoRA may be named once.", param="loras")
    return tuple(Lora(one.name, one.scale) for one in loras)


def out_of_prompt(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """The prompt without A1111's `<lora:NAME:SCALE>`, and what these ask for.

    Raises InvalidRequest: a scale is no number, or there are several.
    """
    found = _TAG.findall(prompt)
    try:
        return _TAG.sub("", prompt).strip() if found else prompt, tuple(map(of_text, found))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="prompt") from error


def as_prompt(loras: Sequence[Lora]) -> str:
    """The same the other way."""
    return "".join(f"<lora:{one.name}:{repr(one.scale).removesuffix('.0')}>" for one in loras)


def of_text(text: str) -> Lora:
    """What "NAME" or "NAME:SCALE" asks for. Raises InvalidRequest."""
    name, *scales = (part.strip() for part in text.split(":"))
    try:
        (scale,) = map(float, scales or ["1"])
    except ValueError as error:
        raise InvalidRequest(
            "A LoRA is NAME or NAME:SCALE, with one number.", param="loras"
        ) from error
    return Lora(name, scale)
