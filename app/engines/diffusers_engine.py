"""Draws with stock diffusers pipelines: load, run, encode, for every family."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline

from app.domain.errors import OutOfMemory
from app.domain.events import ImageFinished, PhaseStarted
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest, Task
from app.engines import image_codec, samplers
from app.engines.base import Report
from app.engines.preview import LatentColours, PredictedEnd
from app.engines.step_gate import StepGate, one_at_a_time, view_of
from app.engines.weights import load_pipeline


class Family(Protocol):
    """What a family module tells: see `stable_diffusion.py`, the shortest one."""

    NAME: str
    PIPELINES: dict[Task, type[DiffusionPipeline]]

    def arguments(self, request: GenerationRequest) -> dict[str, Any]: ...

    def tokenizer(self, pipeline: Any) -> Any: ...

    def unpacked(self, pipeline: Any, latents: Any, request: GenerationRequest) -> Any: ...


class DiffusersEngine:
    """One loaded pipeline. Requests run in the callers' threads, each on its own view."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._pipelines: dict[Task, Any] = {}

    def load(self, card: ModelCard, device: str) -> None:
        text2image = load_pipeline(card, self._family.PIPELINES["text2image"], device)
        self._pipelines["text2image"] = text2image
        for name in ("tokenizer", "tokenizer_2"):
            if (tokenizer := getattr(text2image, name, None)) is not None:
                one_at_a_time(tokenizer)
        self._colours = LatentColours(text2image.vae)
        for task in card.tasks:
            if task != "text2image":
                # The same components under another class: no weight is copied. Without a dtype,
                # `from_pipe` would cast the shared weights to float32.
                kind = self._family.PIPELINES[task]
                self._pipelines[task] = kind.from_pipe(text2image, dtype=text2image.dtype)

    @torch.inference_mode()
    def generate(self, request: GenerationRequest, report: Report) -> None:
        try:
            self._generate(request, report)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The device has no room for this request.") from error

    def _generate(self, request: GenerationRequest, report: Report) -> None:
        report(PhaseStarted("preparing"))
        pipeline = self._pipelines[request.task]
        gate = StepGate(report, request)

        # 1. What all images of the request share.
        arguments = self._family.arguments(request)
        tokens = len(self._family.tokenizer(pipeline)(request.prompt).input_ids)
        size = (request.width, request.height)
        if request.image is not None:
            arguments["image"] = image_codec.decode_rgb(request.image, "image", size)
        if request.mask_image is not None:
            arguments["mask_image"] = image_codec.decode_mask(request.mask_image, size)

        # 2. One image after the other, so that image i is bit for bit what seed + i draws alone.
        for index in range(request.n):
            seed = request.seed + index
            scheduler = samplers.build(
                request.sampler, self._family.NAME, pipeline.scheduler.config
            )
            view = view_of(pipeline, scheduler, gate)
            if request.previews:
                end = PredictedEnd(scheduler)
                gate.preview = partial(self._preview, view, end, request, seed)
            drawn = view(
                **arguments,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pt",
                callback_on_step_end=gate.on_step_end,
                callback_on_step_end_tensor_inputs=["latents"],
            ).images[0]

            # 3. The same rounding as diffusers' `numpy_to_pil`, done where the tensor lies.
            levels = (drawn.float() * 255).round().to(torch.uint8)
            pixels = levels.permute(1, 2, 0).contiguous().cpu().numpy()
            image = image_codec.encode(pixels, request, seed)
            report(ImageFinished(index, image, seed, request.media_type, tokens))

    def _preview(
        self, view: Any, end: PredictedEnd, request: GenerationRequest, seed: int
    ) -> bytes:
        latents = self._family.unpacked(view, end.latents(), request)[0]
        pixels = self._colours.paint(latents, request.width, request.height)
        return image_codec.encode(pixels, request, seed)

    def unload(self) -> None:
        self._pipelines.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
