"""One pipeline in this process, used as it comes and through the engine, for the same pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from app.domain.events import EngineEvent, ImageFinished
from app.domain.model_card import Defaults, Limits, ModelCard
from app.domain.pipelines import PIPELINES
from app.domain.request import Arguments, GenerationRequest
from app.engines import diffusers_engine
from app.engines.base import Sharing
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.image_codec import Pixels
from app.engines.recipe import Recipe, unscaled
from bench.architectures import Architecture
from bench.wishes import farthest, pixels_of


class RandomPrompts:
    """The engine's view of an architecture without text encoders: prompts are noise by the seed."""

    def __init__(self, arch: Architecture, pipeline: Any) -> None:
        self.recipe = Recipe({"text2image": type(pipeline)}, self.arguments, unscaled)
        self._arch, self._config = arch, getattr(pipeline, arch.part).config
        weight = next(getattr(pipeline, arch.part).parameters())
        self._device, self._dtype = weight.device, weight.dtype

    def arguments(self, request: GenerationRequest) -> dict[str, Any]:
        chance = torch.Generator("cpu").manual_seed(request.seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=chance).to(self._device, self._dtype)

        return {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            **self._arch.embeddings(self._config, noise),
        }


class Atelier:
    """Both ways to draw with `pipeline`, at one size."""

    def __init__(self, arch: Architecture, pipeline: Any, device: str, side: int) -> None:
        self.side = side
        self._arch, self._pipeline = arch, pipeline
        self._prompts = RandomPrompts(arch, pipeline)
        self._card = ModelCard(
            id="random",
            family=PIPELINES[arch.pipeline].family,
            pipeline=arch.pipeline,
            source=".",
            defaults=Defaults(
                width=side,
                height=side,
                num_inference_steps=arch.steps,
                guidance_scale=arch.guidance,
                sampler="euler",
            ),
            limits=Limits(),
        )
        self._engine = DiffusersEngine({arch.pipeline: self._prompts.recipe})
        # The engine loads from a folder; this one was made in place.
        with patch.object(diffusers_engine, "load_pipeline", lambda *_, **__: pipeline):
            self._engine.load(self._card, device)

    def engine(self, count: int) -> float:
        """Seconds of `count` requests at once, through the engine, to their PNG files."""

        def draw(number: int) -> None:
            self._engine.generate(self._wish(number), lambda event: None, Sharing(batch=count))

        with ThreadPoolExecutor(count) as threads:
            start = time.perf_counter()
            list(threads.map(draw, range(count)))
            return time.perf_counter() - start

    def raw(self, count: int) -> float:
        """Seconds of the same pictures one after the other, with the stock pipeline and Pillow."""
        start = time.perf_counter()
        for number in range(count):
            self._stock(self._wish(number))
        return time.perf_counter() - start

    def raw_steps(self, batch: int) -> list[float]:
        """Seconds of each step, but the first, of the stock pipeline with a batch of pictures."""
        times: list[float] = []

        def stepped(
            pipeline: Any, step: int, timestep: Any, given: dict[str, Any]
        ) -> dict[str, Any]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return given

        for _ in range(2):  # the first run of a shape chooses kernels
            times.clear()
            self._call(
                self._wish(0),
                num_images_per_prompt=batch,
                output_type="latent",
                callback_on_step_end=stepped,
            )
        return [after - before for before, after in pairwise(times)]

    def same_pixels(self) -> bool:
        """Whether a picture that the engine drew alone is the stock pipeline's."""
        drawn: list[Pixels] = []

        def report(event: EngineEvent) -> None:
            if isinstance(event, ImageFinished):
                drawn.append(pixels_of(event.image))

        self._engine.generate(self._wish(1), report)
        return farthest(drawn[0], pixels_of(self._stock(self._wish(1)))) == 0

    def _stock(self, request: GenerationRequest) -> bytes:
        buffer = io.BytesIO()
        self._call(request, output_type="pil").images[0].save(buffer, format="PNG")
        return buffer.getvalue()

    @torch.inference_mode()
    def _call(self, request: GenerationRequest, **more: Any) -> Any:
        draw: Callable[..., Any] = self._pipeline
        chance = torch.Generator("cpu").manual_seed(request.seed)
        kind = getattr(diffusers, self._arch.scheduler)
        self._pipeline.scheduler = kind.from_config(self._pipeline.scheduler.config)
        return draw(**self._prompts.arguments(request), generator=chance, **more)

    def _wish(self, number: int) -> GenerationRequest:
        return self._card.resolve(
            Arguments(prompt=f"picture {number}", seed=number), draw_seed=lambda: 0
        )
