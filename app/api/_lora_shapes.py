"""The shapes of what is told of LoRAs; see `_shapes`."""

from __future__ import annotations

import msgspec

from app.model_files.state import State


class LoraNamed(msgspec.Struct):
    name: str
    scale: float


class LoraShape(msgspec.Struct):
    """`family` is the kind of models that it is for, "" where the file does not tell; `reason` says why
    it cannot be used."""

    name: str
    family: str
    trigger_words: list[str]
    bytes: int
    state: State
    reason: str


class WebUiLora(msgspec.Struct):
    name: str
    alias: str
    path: str
    metadata: dict[str, str]


class LoraList(msgspec.Struct):
    loras: list[LoraShape]
