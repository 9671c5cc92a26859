"""One request's own view of a loaded pipeline, and the gate that each of its steps passes.

A view shares all weights with the loaded pipeline and owns what a run changes: the scheduler,
guidance, the interrupt flag. Making one takes a tenth of a millisecond, so several requests run the
stock pipeline at the same time, each in its own thread, with the results of running alone.

The gate sits at the two places where every diffusers pipeline lets us in: `callback_on_step_end`
and `progress_bar`, which opens when the denoising loop begins and closes when it ends. Progress goes
out there and cancellation comes in: `report` raises, the exception leaves the pipeline, and nothing
is decoded. (Setting `pipe._interrupt` would skip the remaining steps and still decode.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch

from app.domain.errors import InvalidOutput
from app.domain.events import PhaseStarted, StepFinished
from app.domain.request import GenerationRequest
from app.engines.base import Report


def view_of(pipeline: Any, scheduler: Any, gate: StepGate) -> Any:
    """A view of `pipeline` that steps with `scheduler` and passes through `gate`."""
    view = object.__new__(type(pipeline))
    view.__dict__.update(pipeline.__dict__)
    view.__dict__["scheduler"] = scheduler
    view.__dict__["progress_bar"] = gate.denoising_loop
    return view


def one_at_a_time(tokenizer: Any) -> None:
    """Let only one thread at a time into a tokenizer that views share.

    A fast tokenizer first sets padding and truncation on its shared core and then encodes: a second
    thread in between changes the first one's prompt, and once in fifty pictures it did.
    """
    lock = threading.Lock()
    kind = type(tokenizer)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        with lock:
            return kind.__call__(self, *given, **named)

    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": call})


class StepGate:
    """The gate of one request: it counts the steps of all its images from 1 to `total_steps`.

    `preview`, set for each image, draws and encodes what is unfinished; it is called after the
    request's preview steps.
    """

    def __init__(self, report: Report, request: GenerationRequest) -> None:
        self.preview: Callable[[], bytes] | None = None
        self._report = report
        self._preview_steps = request.preview_steps
        self._total = request.total_steps
        self._per_image = request.steps_per_image
        self._last_image = request.n - 1
        self._image = 0
        self._step = 0

    def denoising_loop(self, iterable: object = None, total: int | None = None) -> Self:
        """Stands in for `DiffusionPipeline.progress_bar`; the loop runs inside `with`."""
        return self

    def __enter__(self) -> Self:
        if self._image == 0:
            self._report(PhaseStarted("generating", self._total))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            if self._image == self._last_image:
                self._report(PhaseStarted("post_processing"))
            self._image += 1

    def update(self, steps: int = 1) -> None:
        """The pipeline's own count of steps; ours comes from the callback, which never skips one."""

    def on_step_end(
        self, view: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`. `index` counts the denoiser's calls of this image.

        Samplers of second order call the denoiser twice a step and PNDM once more in all, so calls
        are scaled to steps: the last call is always the last step, and no step is told twice.

        Raises:
            InvalidOutput: the finished latents hold NaN or infinity; a decoder would make black
                of them without a word.
        """
        calls: int = view.num_timesteps
        done = (index + 1) * self._per_image // calls
        if index + 1 == calls and not torch.isfinite(tensors["latents"]).all():
            raise InvalidOutput("The model produced values that are not numbers.")
        step = self._image * self._per_image + done
        if step > self._step:
            self._step = step
            show = self.preview if done in self._preview_steps else None
            self._report(StepFinished(step, show() if show else None))
        return {}
