"""How a model can be drawn with the memory that there is: arithmetic, no device.

Weights are counted by part, because parts work one after the other and may take turns on the device.
What is computed besides is in proportion to the pixels. Both are counts of tensors: what a device's
library keeps for itself, and what its allocator cannot fill, is in `_RESERVE` and `_WASTE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Residency = Literal["resident", "model_offload", "group_offload"]
"""All parts on the device; each part there while it works; each layer there while it works."""

Weights = Literal["float32", "bfloat16", "float16", "int8"]

BYTES: Mapping[Weights, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    # One byte in linear layers, two elsewhere: 97 % of T5's weights are in them, and all but a few of
    # Flux.1's.
    "int8": 1.03,
}

DENOISE, DECODE = 520.0, 1536.0
"""Bytes for each pixel of a picture that the denoiser and the decoder compute with at their fullest,
two bytes a number: what `python -m bench.activations` counts. The decoder's is that of AutoencoderKL
as all Stable Diffusion and Flux.1 models have it; the denoiser's is SD 1.5's, the largest."""

TILE = 512
"""Side in pixels of the tiles that `tiled` decodes in."""

_LAYERS = 700_000_000
"""Bytes of the layers that are on the device at once, at two bytes a number, when each comes while the
one before it works: the two largest of Flux.1, and its text encoder's embeddings."""

_RESERVE = 600_000_000
"""Bytes of the device that the driver and the libraries take: a CUDA context with cuBLAS and cuDNN."""

_WASTE = 1.05

_LARGE = 1_000_000_000
"""Parts with fewer weights are not quantised: they gain little, and a decoder loses much."""

_CONVOLUTIONS = {"unet", "vae"}
"""Parts that are made of them to a good part; only linear layers are quantised."""

STAYS = "vae"
"""The part that is always there: it is small, and pipelines change its type in the middle of a run."""

_WORDS: Mapping[Residency, str] = {
    "resident": "all of it stays on the device",
    "model_offload": "its parts take turns on the device",
    "group_offload": "its layers take turns on the device",
}


class Needs(msgspec.Struct, frozen=True):
    """What a model is made of: numbers of weights by part, and the bytes for each pixel (at two bytes a
    number) that its denoiser and its decoder compute with."""

    parts: Mapping[str, int]
    denoise: float = DENOISE
    decode: float = DECODE

    @property
    def quantisable(self) -> frozenset[str]:
        """The parts that can be held smaller."""
        large = (part for part, count in self.parts.items() if count >= _LARGE)
        return frozenset(large) - _CONVOLUTIONS

    def bytes_of(self, part: str, weights: Weights, floats: Weights) -> float:
        return self.parts[part] * BYTES[weights if part in self.quantisable else floats]


class Plan(msgspec.Struct, frozen=True):
    """One way. `vram` and `ram` are the bytes that it takes at its fullest, on the device and in the
    machine; of `vram`, `working` is all but weights. `weights` is what the large parts are held as,
    `tiled` whether pictures are decoded in tiles. Where it `changes_pictures`, they are close to those
    of the other plans, not equal."""

    residency: Residency
    weights: Weights
    tiled: bool
    vram: int
    ram: int
    working: int

    @property
    def changes_pictures(self) -> bool:
        return self.tiled or self.quantised

    @property
    def quantised(self) -> bool:
        return self.weights == "int8"

    @property
    def sentence(self) -> str:
        tiles = ", decoded in tiles" if self.tiled else ""
        return f"{self.weights}, {_WORDS[self.residency]}{tiles}"


class Room(msgspec.Struct, frozen=True):
    """Bytes that the device and the machine have; 0 where the device's are not known."""

    vram: int
    ram: int


NO_LIMIT = Room(0, 0)


def plans(
    needs: Needs,
    *,
    width: int,
    height: int,
    floats: Weights = "bfloat16",
    quantised: bool = True,
) -> list[Plan]:
    """All ways, the best first: fast before slow, and equal pictures before close ones.

    `quantised` tells whether the installation can hold weights smaller.
    """
    ways: list[tuple[Residency, Weights, bool]] = [
        ("resident", floats, False),
        ("model_offload", floats, False),
        ("group_offload", floats, False),
        ("resident", floats, True),
        ("model_offload", floats, True),
        ("group_offload", floats, True),
    ]
    if quantised and needs.quantisable:
        # Quantised weights stay what they are on the device: their layers cannot come one by one.
        ways += [
            (residency, "int8", tiled)
            for tiled in (False, True)
            for residency in ("resident", "model_offload")
        ]
    return [_plan(needs, width, height, floats, *way) for way in ways]


def _plan(
    needs: Needs,
    width: int,
    height: int,
    floats: Weights,
    residency: Residency,
    weights: Weights,
    tiled: bool,
) -> Plan:
    scale = BYTES[floats] / 2.0
    pixels = width * height
    denoise = needs.denoise * pixels * scale
    decode = needs.decode * (min(pixels, TILE * TILE) if tiled else pixels) * scale
    working = round(max(denoise, decode) * _WASTE) + _RESERVE
    by_part = {part: needs.bytes_of(part, weights, floats) for part in needs.parts}
    whole = sum(by_part.values())
    staying = by_part.get(STAYS, 0.0)
    coming = [size for part, size in by_part.items() if part != STAYS]
    if residency == "resident":
        there = whole
    elif residency == "model_offload":
        there = staying + max(coming, default=0.0)
    else:
        there = min(whole, staying + _LAYERS * scale)
    # While it is loaded, a part is in the machine's memory before it is on the device.
    ram = max(by_part.values(), default=0.0) if residency == "resident" else whole
    vram = round(there * _WASTE) + working
    return Plan(residency, weights, tiled, vram, round(ram), working)


def choose(ways: Sequence[Plan], room: Room) -> Plan | None:
    """The first that fits."""
    return next((way for way in ways if way.vram <= room.vram and way.ram <= room.ram), None)


def refusal(ways: Sequence[Plan], room: Room) -> str:
    """Why none fits, and what would."""
    least = min(ways, key=lambda way: max(way.vram / room.vram, way.ram / room.ram))
    return (
        f"It needs at least {_gb(least.vram)} on the device and {_gb(least.ram)} of the machine's "
        f"memory ({least.sentence}); there are {_gb(room.vram)} and {_gb(room.ram)}."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
