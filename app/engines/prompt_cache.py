"""What text encoders made of words, kept for the next time.

Exact, since it sits at the encoder's own call: a pipeline encodes each prompt alone, and equal tokens
give equal embeddings. A repeated prompt, and the empty negative one above all, costs nothing then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

_LARGEST_IDS = 65536
"""Arguments with more numbers than this are not words."""


class PromptCache:
    """The newest outputs of some encoders, within `budget` bytes of tensors."""

    def __init__(self, budget: int = 128 * 1024 * 1024) -> None:
        self._budget = budget
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(
        self,
        encoder: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        encode: Callable[[], Any],
        adapters: Hashable = (),
    ) -> Any:
        """The encoder's output for these arguments: the one kept, or else what `encode` returns.

        `adapters` tells what its adapters make of it, if it has any that stay as they are. The output
        is shared between requests: nobody may write to its tensors.
        """
        # An adapter's share in the weights is changed in place, and by pipelines too.
        adapted = bool(getattr(encoder, "peft_config", None))
        asked = None if adapted and not adapters else _key((id(encoder), args, kwargs))
        if asked is None:
            return encode()
        key = (asked, adapters if adapted else ())
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        output = encode()
        size = _bytes(output)
        with self._lock:
            if key not in self._kept and size <= self._budget:
                self._kept[key] = output, size
                self._bytes += size
            while self._bytes > self._budget:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return output

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _key(value: Any) -> Hashable:
    """The value in a form that can be compared; None for what cannot be, or should not."""
    match value:
        case Tensor():
            if value.is_floating_point() or value.numel() > _LARGEST_IDS:
                return None
            return (tuple(value.shape), value.dtype, value.cpu().numpy().tobytes())
        case bool() | int() | float() | str():
            return (type(value), value)
        case None:
            return ()
        case list() | tuple() | dict():
            items = value.items() if isinstance(value, dict) else enumerate(value)
            keys = [(name, _key(one)) for name, one in items]
            return None if any(key is None for _, key in keys) else tuple(keys)
    return None


def _bytes(output: Any) -> int:
    match output:
        case Tensor():
            return output.nbytes
        case list() | tuple():
            return sum(_bytes(one) for one in output)
        case dict():
            return sum(_bytes(one) for one in output.values())
    return 0
