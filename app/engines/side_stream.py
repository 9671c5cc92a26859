"""Work beside the device's main queue: on a GPU, encoding and decoding need not wait for denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def beside(work: Callable[[], Any]) -> Any:
    """Do `work` on a stream of its own, after what this thread has queued so far, and wait for it.

    Without CUDA it is simply done. What comes back may be used on the main stream at once.
    """
    if not torch.cuda.is_available():
        return work()
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        result = work()
    side.synchronize()
    _used_on(main, result)
    return result


def settle() -> None:
    """Wait until the main stream has done what it was given: a step is told when it is finished, and
    the next one is chosen then."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def _used_on(stream: torch.cuda.Stream, result: Any) -> None:
    """Keep the allocator from giving these tensors' memory away while the stream still reads it."""
    if isinstance(result, Tensor):
        if result.is_cuda:
            result.record_stream(stream)
    elif isinstance(result, dict):
        for one in result.values():
            _used_on(stream, one)
    elif isinstance(result, list | tuple):
        for one in result:
            _used_on(stream, one)
