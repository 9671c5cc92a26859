"""What the models of one worker may take of its device and of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from app.domain.lora import KEPT_BYTES

AT_HOME = ("cpu", "mps")
"""Devices whose memory is the machine's own: there is nowhere to move weights to."""

_SHARE = 0.8
"""Of a GPU's memory; the rest is for what is computed."""
_SHARE_AT_HOME = 0.6
_SHARE_FOR_COPIES = 0.5
"""Of the machine's memory, which belongs to others too."""


class Budget(msgspec.Struct, frozen=True):
    """Limits as they were set. Sizes are bytes, and 0 is a share of what there is; `model_ttl` is
    seconds, `max_models` a number, and of both 0 is no limit.

    `pinned` models stay, once loaded. `max_ram` is shared by all `workers` of a machine. Each model
    keeps LoRAs of up to `lora_memory` bytes.
    """

    max_vram: int = 0
    max_ram: int = 0
    max_models: int = 0
    pinned: tuple[str, ...] = ()
    model_ttl: float = 0.0
    workers: int = 1
    lora_memory: int = KEPT_BYTES

    def room_on(self, device: str, memory: int) -> Room:
        """What this comes to on a device with `memory` bytes (0: not known, and then no limit)."""
        ram = memory_of_machine()
        if device in AT_HOME:
            shared = (self.max_ram or int(ram * _SHARE_AT_HOME)) // self.workers
            return Room(shared, self.max_ram // self.workers or ram, 0)
        copies = (self.max_ram or int(ram * _SHARE_FOR_COPIES)) // self.workers
        return Room(self.max_vram or int(memory * _SHARE), self.max_vram or memory, copies)

    def refusal(self, model: str, size: int, room: Room, pinned: Sequence[int]) -> str:
        """Why there can be no room for a model of `size` bytes beside pinned ones of these."""
        if self.max_models and len(pinned) >= self.max_models:
            return f"Model {model} has no place beside the models that are to stay loaded."
        left = (room.shared if pinned else room.alone) - sum(pinned)
        beside = " beside the models that are to stay loaded" if pinned else ""
        return (
            f"Model {model} needs {gigabytes(size)}, and the device has room for "
            f"{gigabytes(max(0, left))}{beside}."
        )


class Room(msgspec.Struct, frozen=True):
    """Bytes: what several models may take together and what one may take alone (0: no limit), and
    what copies of models that left the device may take in host memory."""

    shared: int = 0
    alone: int = 0
    copies: int = 0


def memory_of_machine() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            return min(whole, int((Path("/sys/fs/cgroup") / limit).read_text()))
    return whole


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 50_000_000 else f"{size / 1e9:.3f} GB"
