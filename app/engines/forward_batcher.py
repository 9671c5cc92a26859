"""Calls of one denoiser by several requests, merged into one forward and split again.

A request's guidance, sampler, step count and everything else stay its own: only the forward is shared.
Rows may differ in timestep, prompt and guidance; shapes, data types and all that is not a row must be
equal. A call that nobody shares is made exactly as it came, so its result is bit for bit that of the
stock pipeline; shared rows differ from it by rounding (relative 1e-6 in float32).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.utils import BaseOutput
from torch import Tensor

from app.engines.turnstile import attempt


@dataclass(frozen=True)
class Batching:
    """Which arguments of a denoiser's `forward` are what.

    `picture` is the noisy input. `rows` hold, as it does, one row for each picture and each of its
    guidance branches: tensors, or lists, tuples and dicts of tensors. `listed` are lists with a plain
    entry for each row. `equal` are tensors without rows. `timestep` is a number, or one for each row.
    All others must be plain and equal.
    """

    picture: str
    rows: frozenset[str]
    equal: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    timestep: str = "timestep"


BATCHINGS: Mapping[type[Any], Batching] = {
    UNet2DConditionModel: Batching(
        "sample",
        frozenset(
            {
                "sample",
                "encoder_hidden_states",
                "class_labels",
                "timestep_cond",
                "attention_mask",
                "encoder_attention_mask",
                "added_cond_kwargs",
                "down_block_additional_residuals",
                "mid_block_additional_residual",
                "down_intrablock_additional_residuals",
            }
        ),
    ),
    FluxTransformer2DModel: Batching(
        "hidden_states",
        frozenset(
            {
                "hidden_states",
                "encoder_hidden_states",
                "pooled_projections",
                "guidance",
                "controlnet_block_samples",
                "controlnet_single_block_samples",
            }
        ),
        frozenset({"img_ids", "txt_ids"}),
    ),
    SD3Transformer2DModel: Batching(
        "hidden_states",
        frozenset(
            {
                "hidden_states",
                "encoder_hidden_states",
                "pooled_projections",
                "block_controlnet_hidden_states",
            }
        ),
    ),
    Flux2Transformer2DModel: Batching(
        "hidden_states",
        frozenset({"hidden_states", "encoder_hidden_states", "guidance"}),
        equal=frozenset({"img_ids", "txt_ids"}),  # one set for all rows: the first is used
    ),
    QwenImageTransformer2DModel: Batching(
        "hidden_states",
        frozenset(
            {
                "hidden_states",
                "encoder_hidden_states",
                "encoder_hidden_states_mask",
                "guidance",
            }
        ),
        listed=frozenset({"img_shapes"}),
    ),
    SanaTransformer2DModel: Batching(
        "hidden_states",
        frozenset({"hidden_states", "encoder_hidden_states", "encoder_attention_mask", "guidance"}),
    ),
    PixArtTransformer2DModel: Batching(
        "hidden_states",
        frozenset(
            {
                "hidden_states",
                "encoder_hidden_states",
                "encoder_attention_mask",
                "added_cond_kwargs",
            }
        ),
    ),
}
"""Denoisers whose rows do not see each other. Others run one request at a time: that of Z-Image takes
lists of pictures and prompts of any length, and pads them."""


class Unshareable(Exception):
    """The call holds something of which it is not known how it could be merged."""


@dataclass(frozen=True)
class Call:
    """One call of a denoiser; `kind` is equal for calls that can be merged."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]
    rows: int
    kind: Hashable


class ForwardBatcher:
    """The merger in front of one denoiser. `call` is for the runs' threads, `together` for the one
    that does the device's work."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        self._batching = BATCHINGS.get(denoiser.__class__)
        self._signature = inspect.signature(denoiser.__class__.forward)
        self._limits: dict[Hashable, int] = {}
        self._digests: dict[int, tuple[Tensor, bytes]] = {}
        self._lock = threading.Lock()

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call if it can be shared, or None."""
        batching = self._batching
        if batching is None:
            return None
        try:
            named = dict(self._signature.bind(None, *args, **kwargs).arguments)
        except TypeError:
            return None  # the denoiser itself says what is wrong with it
        named.pop(next(iter(named)))  # self
        named.update(named.pop("kwargs", {}))
        picture = named.get(batching.picture)
        if not isinstance(picture, Tensor):
            return None
        rows = picture.shape[0]
        try:
            key = tuple(
                (name, self._trait(name, named[name], rows, batching)) for name in sorted(named)
            )
        except Unshareable:
            return None
        return Call(args, kwargs, named, rows, (id(self.denoiser), key))

    def together(self, calls: Sequence[Call]) -> list[Any]:
        """For each call what the denoiser returned, or the exception that it raised.

        A forward that fails for several is repeated for each alone, so that the fault of one is not
        the end of the others; where it was memory that failed, fewer share from then on.
        """
        results: list[Any] = []
        while (first := len(results)) < len(calls):
            limit = self._limits.get(calls[0].kind, len(calls))
            results += self._merged(calls[first : first + limit])
        return results

    def _merged(self, calls: Sequence[Call]) -> list[Any]:
        if len(calls) > 1:
            try:
                return self.forward(calls)
            except torch.OutOfMemoryError:
                self._limits[calls[0].kind] = max(1, len(calls) // 2)
            except Exception:  # noqa: S110 - whose fault it is shows when each is alone
                pass
            torch.cuda.empty_cache()
        return [attempt(partial(self.denoiser, *call.args, **call.kwargs)) for call in calls]

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """One forward for all calls, which are of one kind; or the exception that it raises."""
        batching, rows = self._batching, [call.rows for call in calls]
        if batching is None:
            raise Unshareable
        merged: dict[str, Any] = {}
        for name, value in calls[0].named.items():
            values = [call.named[name] for call in calls]
            if name == batching.timestep:
                merged[name] = torch.cat([_for_rows(call.named[name], call) for call in calls])
            elif name in batching.rows:
                merged[name] = _joined(values)
            elif name in batching.listed:
                merged[name] = [entry for value in values for entry in value]
            else:
                merged[name] = value
        return _split(self.denoiser(**merged), rows)

    def _trait(self, name: str, value: Any, rows: int, batching: Batching) -> Hashable:
        """What of an argument must be equal for calls to be merged."""
        if name == batching.timestep:
            return None
        if name in batching.rows:
            return _shapes(value, rows)
        if name in batching.equal and isinstance(value, Tensor):
            return (tuple(value.shape), self._digest(value))
        return _plain(value)

    def _digest(self, tensor: Tensor) -> bytes:
        """The bytes of a small tensor. Pipelines pass the same object at every step, and reading it
        back from a device costs a wait, so the newest few are remembered."""
        with self._lock:
            known = self._digests.get(id(tensor))
            if known is None or known[0] is not tensor:
                known = tensor, tensor.detach().float().cpu().numpy().tobytes()
                if len(self._digests) >= 64:
                    self._digests.pop(next(iter(self._digests)))
                self._digests[id(tensor)] = known
            return known[1]


def _for_rows(timestep: Any, call: Call) -> Tensor:
    """A call's timestep, once for each row. Denoisers compute with it as a float in any case."""
    device = next(value.device for value in call.named.values() if isinstance(value, Tensor))
    given = torch.as_tensor(timestep, device=device).float()
    return given.expand(call.rows) if given.ndim == 0 or given.shape[0] != call.rows else given


def _shapes(value: Any, rows: int) -> Hashable:
    match value:
        case None:
            return None
        case Tensor():
            if value.ndim == 0 or value.shape[0] != rows:
                raise Unshareable
            return (tuple(value.shape[1:]), value.dtype, value.device)
        case list() | tuple():
            return tuple(_shapes(one, rows) for one in value)
        case dict():
            return tuple((key, _shapes(value[key], rows)) for key in sorted(value))
    raise Unshareable


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    match first:
        case Tensor():
            return torch.cat(list(values))
        case list() | tuple():
            return type(first)(_joined(ones) for ones in zip(*values, strict=True))
        case dict():
            return {key: _joined([value[key] for value in values]) for key in first}
    return first


def _split(output: Any, rows: Sequence[int]) -> list[Any]:
    match output:
        case Tensor():
            return list(torch.split(output, list(rows)))
        case BaseOutput():
            parts = [_split(output[key], rows) for key in output]
            return [
                type(output)(**dict(zip(output, part, strict=True)))
                for part in zip(*parts, strict=True)
            ]
        case tuple():
            return list(zip(*(_split(one, rows) for one in output), strict=True))
    return [output] * len(rows)


def _plain(value: Any) -> Hashable:
    """A value without tensors, in a form that can be compared."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return tuple(_plain(one) for one in value)
        case dict():
            return tuple((key, _plain(value[key])) for key in sorted(value))
    raise Unshareable
