"""Weights that wait in host memory, so that they leave a device for nothing and return in one copy."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_log = logging.getLogger(__name__)

_ALIGNMENT = 64
"""Bytes: what kernels and copies like addresses to be multiples of."""


class Carrier(Protocol):
    """Moves weights between a device and host memory."""

    @property
    def memory(self) -> int: ...
    def to_device(self) -> None: ...
    def to_host(self) -> None: ...


def carrier_of(modules: Iterable[nn.Module], device: torch.device | str) -> Carrier:
    """The fastest way for these weights to come and go."""
    known = list(modules)
    if any(is_traceable_wrapper_subclass(weight) for weight in _weights(known)):
        return Carried(known, device)
    return HostCopy(known, device)


def memory_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights, parameters and buffers; what is shared, counted once."""
    pieces = (piece for weight in _weights(modules) for piece in _pieces(weight))
    return sum({piece.data_ptr(): piece.nbytes for piece in pieces}.values())


class _Weight:
    """One piece of memory, and all parameters and buffers that are it."""

    def __init__(self, owner: Tensor) -> None:
        self.owners = [owner]
        self.master: Tensor = owner.data

    def point_to(self, data: Tensor) -> None:
        for owner in self.owners:
            owner.data = data


class HostCopy:
    """The weights of `modules` (parameters and buffers), kept in host memory for as long as this lives.

    What you can rely on: `to_device` copies every weight once and `to_host` none; weights that are
    shared stay shared; whatever moves, their bits and strides stay the same. Weights on a device when
    this is made are copied from there. From then on only this object may move them, and nobody may
    change them.

    With `pin` (by default where there is CUDA) the copy is one page-locked block, so that it travels at
    the full speed of the bus; without, weights that lie in host memory already are not copied at all.
    """

    def __init__(
        self, modules: Iterable[nn.Module], device: torch.device | str, *, pin: bool | None = None
    ) -> None:
        self._device = torch.device(device)
        found: dict[tuple[object, ...], _Weight] = {}
        seen: set[int] = set()
        for owner in _weights(modules):
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            if (known := found.get(_place(owner))) is not None:
                known.owners.append(owner)
            else:
                found[_place(owner)] = _Weight(owner)
        self._weights = list(found.values())
        if torch.cuda.is_available() if pin is None else pin:
            self._pack()
        for weight in self._weights:
            weight.master = weight.master.to("cpu")

    @property
    def memory(self) -> int:
        """Bytes of the weights, shared ones counted once."""
        return sum(weight.master.nbytes for weight in self._weights)

    def to_device(self) -> None:
        """Bring the weights to the device. When it has no room they are back in host memory, and
        torch's error is raised."""
        try:
            with torch.inference_mode(mode=False), torch.no_grad():
                for weight in self._weights:
                    there = torch.empty_like(weight.master, device=self._device)
                    weight.point_to(there.copy_(weight.master, non_blocking=True))
        except BaseException:
            self.to_host()
            raise
        if self._device.type == "cuda":  # who comes next may use another stream
            torch.cuda.current_stream(self._device).synchronize()

    def to_host(self) -> None:
        """Let the device's memory go. Nothing may be computing with the weights."""
        for weight in self._weights:
            weight.point_to(weight.master)

    def _pack(self) -> None:
        """Copy all weights into one block and lock its pages.

        One block of our own: torch's allocator for locked memory rounds every tensor up to a power of
        two, which can double what a model takes.
        """
        dense = [weight for weight in self._weights if _is_dense(weight.master)]
        sizes = [-(-weight.master.nbytes // _ALIGNMENT) * _ALIGNMENT for weight in dense]
        block = torch.empty(sum(sizes), dtype=torch.uint8)
        if _lock(block):
            weakref.finalize(self, _unlock, block).atexit = False
        start = 0
        for weight, size in zip(dense, sizes, strict=True):
            old = weight.master
            flat = block[start : start + old.nbytes].view(old.dtype)
            weight.master = flat.as_strided(old.shape, old.stride())
            weight.master.copy_(old)
            if old.device.type == "cpu":
                weight.point_to(weight.master)  # or they would be held twice
            start += size


class Carried:
    """The weights of `modules` of which some are no plain memory, such as quantised ones.

    What you can rely on: as with HostCopy, but they are copied both ways, through ordinary memory, and
    take none of the machine's while they are on the device.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device | str) -> None:
        self._modules = list(modules)
        self._device = torch.device(device)

    @property
    def memory(self) -> int:
        return memory_of(self._modules)

    def to_device(self) -> None:
        try:
            self._carry(self._device)
        except BaseException:
            self.to_host()
            raise

    def to_host(self) -> None:
        self._carry(torch.device("cpu"))

    def _carry(self, device: torch.device) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            for module in self._modules:
                module.to(device)


def _weights(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that it is made of: numbers and their scales, where it is quantised."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _pieces(getattr(tensor, name))


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory, seen alike."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps, in whatever order."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.numel() > 0 and 1 + sum((n - 1) * step for n, step in pairs) == tensor.numel()


def _lock(block: Tensor) -> bool:
    if not torch.cuda.is_available() or not block.nbytes:
        return False
    runtime: Any = torch.cuda  # its typing stops here
    failed = int(runtime.cudart().cudaHostRegister(block.data_ptr(), block.nbytes, 0))
    if failed:
        _log.warning("host memory cannot be locked (CUDA error %d); copies are slower", failed)
    return not failed


def _unlock(block: Tensor) -> None:
    runtime: Any = torch.cuda
    runtime.cudart().cudaHostUnregister(block.data_ptr())
