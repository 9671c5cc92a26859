"""Parts of a model that take turns on a device which has no room for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from app.engines.host_copy import Carrier, carrier_of


class PartsInTurn:
    """Each part comes to the device when it is called; those called longest ago leave to make room.

    What you can rely on: a part is on the device while it works; what it computes is bit for bit what
    it would compute there all the time; weights of several parts are there at once only within `room`
    bytes. Only one thread may call the parts, the device's.
    """

    def __init__(self, parts: Mapping[str, nn.Module], device: str, room: int) -> None:
        self._copies = {name: carrier_of([part], device) for name, part in parts.items()}
        self._room = room
        self._here: OrderedDict[str, Carrier] = OrderedDict()
        self._hooks = [
            part.register_forward_pre_hook(_Bring(self, name)) for name, part in parts.items()
        ]

    @property
    def here(self) -> list[str]:
        """The parts on the device, the one called last at the end."""
        return list(self._here)

    def bring(self, name: str) -> None:
        """Have the part on the device. Raises torch's error when there is no room for it."""
        if name in self._here:
            self._here.move_to_end(name)
            return
        copy = self._copies[name]
        while self._here and copy.memory + self._memory_here() > self._room:
            _, oldest = self._here.popitem(last=False)
            oldest.to_host()
        copy.to_device()
        self._here[name] = copy

    def send_away(self) -> None:
        """Leave the device. Nobody may be drawing."""
        for copy in self._here.values():
            copy.to_host()
        self._here.clear()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.send_away()

    def _memory_here(self) -> int:
        return sum(copy.memory for copy in self._here.values())


class _Bring:
    """A hook that has its part come. A copy of the part would bring the part itself."""

    def __init__(self, turns: PartsInTurn, name: str) -> None:
        self._turns, self._name = turns, name

    def __call__(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        self._turns.bring(self._name)

    def __deepcopy__(self, known: dict[int, Any]) -> _Bring:
        return self


def layers_in_turn(parts: Mapping[str, nn.Module], device: str) -> None:
    """Have each layer of these parts come to the device when it works, and on CUDA the next one while
    it does."""
    for part in parts.values():
        apply_group_offloading(
            part,
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=device.startswith("cuda"),
        )
