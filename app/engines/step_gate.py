"""The gate that every step of a picture passes.

The gate sits at the two places where every diffusers pipeline lets us in: `callback_on_step_end`
and `progress_bar`, which opens when the denoising loop begins and closes when it ends. Progress goes
out there and cancellation comes in: `report` raises, the exception leaves the pipeline, and nothing
is decoded. (Setting `pipe._interrupt` would skip the remaining steps and still decode.)
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch

from app.domain.errors import InvalidOutput
from app.domain.request import GenerationRequest
from app.engines.run_gate import RunGate
from app.engines.turnstile import Rider


class ImageGate:
    """The gate of one picture of a request.

    `preview` draws and encodes what is unfinished; it is called after the request's preview steps.
    """

    def __init__(self, run: RunGate, request: GenerationRequest, image: int, rider: Rider) -> None:
        self.preview: Callable[[], bytes] | None = None
        self._run = run
        self._image = image
        self._rider = rider
        self._steps = request.steps_per_image
        self._preview_steps = request.preview_steps
        self._told = 0

    def denoising_loop(self, iterable: object = None, total: int | None = None) -> Self:
        """Stands in for `DiffusionPipeline.progress_bar`; the loop runs inside `with`."""
        return self

    def __enter__(self) -> Self:
        self._run.loop_began()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._rider.step_aside()
            return
        self._rider.last_shared()
        self._run.loop_ended(self._image)

    def update(self, steps: int = 1) -> None:
        """The pipeline's own count of steps; ours comes from the callback, which never skips one."""

    def callbacks(self, *, has_step_end: bool) -> dict[str, Any]:
        """The arguments by which a pipeline lets us in after each step."""
        if has_step_end:
            return {
                "callback_on_step_end": self.on_step_end,
                "callback_on_step_end_tensor_inputs": ["latents"],
            }
        return {"callback": self.on_step, "callback_steps": 1}

    def on_step_end(
        self, view: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`. `index` counts the denoiser's calls of this picture."""
        self._called(index, view.num_timesteps, tensors["latents"])
        return {}

    def on_step(self, index: int, timestep: Any, latents: Any) -> None:
        """diffusers' older `callback`. `index` counts steps."""
        self._called(index, self._steps, latents)

    def _called(self, index: int, calls: int, latents: Any) -> None:
        """After one of the `calls` that make a picture.

        Samplers of second order call the denoiser twice a step and PNDM once more in all, so calls
        are scaled to steps: the last call is always the last step, and no step is told twice.

        Raises:
            InvalidOutput: the finished latents hold NaN or infinity; a decoder would make black
                of them without a word.
        """
        done = (index + 1) * self._steps // calls
        if index + 1 == calls:
            self._rider.last_shared()  # to be decoded, before less urgent ones go on
            if not torch.isfinite(latents).all():
                raise InvalidOutput("The model produced values that are not numbers.")
        if done > self._told:
            self._told = done
            preview = None
            if self.preview is not None and done in self._preview_steps:
                self._rider.step_aside()
                preview = self.preview()
            self._run.stepped(self._image, done, preview, self._rider)
