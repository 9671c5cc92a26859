"""Faster ways to run a denoiser that do not give quite the same picture.

None of them is ever on by itself: a preset that uses one must first have been measured on this machine
to be faster and close enough. A technique is a name, with a number behind "=" where it takes one:
"bfloat16", "compile", "first_block_cache=0.1".
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from app.domain.errors import InvalidRequest
from app.engines.forward_batcher import ForwardBatcher
from app.engines.stand_in import StandIn

STATELESS = ("bfloat16", "compile")
"""Techniques whose forwards can be shared between requests."""
STATEFUL = ("first_block_cache",)
"""Techniques that remember something from step to step: each picture gets a denoiser of its own."""


class AloneOnly:
    """A denoiser whose calls are never merged with others'."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser


Denoiser = ForwardBatcher | AloneOnly


class Techniques:
    """One loaded denoiser under all techniques that were asked for. Weights are never copied."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self._plain = ForwardBatcher(denoiser)
        self._stateless: dict[str, ForwardBatcher] = {}
        self._idle: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def denoiser(self, technique: str, *, strict: bool = False) -> Iterator[Denoiser]:
        """The denoiser for one picture: the plain one, shared, without a technique; the plain one, not
        shared, where it is to be `strict`.

        Raises InvalidRequest: this denoiser does not know the technique.
        """
        name = technique.partition("=")[0]
        if strict:
            yield AloneOnly(self._denoiser)
        elif not technique:
            yield self._plain
        elif name in STATELESS:
            with self._lock:
                if technique not in self._stateless:
                    self._stateless[technique] = ForwardBatcher(_stateless(name, self._denoiser))
            yield self._stateless[technique]
        else:
            twin = self._take(technique)
            try:
                yield AloneOnly(twin)
            finally:
                # Also after a failure: diffusers itself forgets what the steps left behind only at
                # the end of a run that succeeds, and the next picture would come out different.
                twin._reset_stateful_cache()  # noqa: SLF001
                with self._lock:
                    self._idle[technique].append(twin)

    def _take(self, technique: str) -> Any:
        with self._lock:
            idle = self._idle.setdefault(technique, [])
            if idle:
                return idle.pop()
        return _stateful(technique, self._denoiser)


def _stateless(name: str, denoiser: Any) -> Any:
    if name == "compile":
        compiled: Any = torch.compile(denoiser)
        return StandIn(denoiser, compiled.__call__)  # itself it has no truth value

    def narrow(*args: Any, **kwargs: Any) -> Any:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        picture = next(tensors)
        with torch.autocast(picture.device.type, torch.bfloat16):
            return _of_type(denoiser(*args, **kwargs), picture.dtype)

    return StandIn(denoiser, narrow)


def _of_type(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, Tensor):
        return output.to(dtype)
    if isinstance(output, tuple):
        return tuple(_of_type(one, dtype) for one in output)
    return type(output)(**{key: _of_type(value, dtype) for key, value in output.items()})


def _stateful(technique: str, denoiser: Any) -> Any:
    """A second set of modules over the same weights, with the technique's hooks on it."""
    name, _, number = technique.partition("=")
    try:
        threshold = float(number)
    except ValueError:
        threshold = 0.0
    if name not in STATEFUL or not threshold > 0 or not hasattr(denoiser, "enable_cache"):
        raise InvalidRequest("This model cannot be drawn with this technique.", param="preset")
    weights = [*denoiser.parameters(), *denoiser.buffers()]
    twin = copy.deepcopy(denoiser, {id(weight): weight for weight in weights})
    twin.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    return twin
