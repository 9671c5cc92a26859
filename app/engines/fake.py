"""An engine without a model: the same events, any size, any speed, no torch.

For tests of everything around engines, for benchmarks of the gateway alone, and as the shortest
example of an engine. Its picture is a flat colour that depends on prompt and seed, or noise.
"""

from __future__ import annotations

import hashlib
import time
from functools import cache

import numpy as np

from app.domain.events import ImageFinished, PhaseStarted, StepFinished
from app.domain.model_card import FakeTimes, ModelCard
from app.domain.request import GenerationRequest
from app.engines import image_codec
from app.engines.base import Report


class FakeEngine:
    """Sleeps as long as its card says, in place of loading and of each step."""

    def __init__(self) -> None:
        self._times = FakeTimes()

    def load(self, card: ModelCard, device: str) -> None:
        self._times = card.fake
        time.sleep(card.fake.load_seconds)

    def generate(self, request: GenerationRequest, report: Report) -> None:
        report(PhaseStarted("preparing"))
        report(PhaseStarted("generating", request.total_steps))
        for step in range(1, request.total_steps + 1):
            time.sleep(self._times.step_seconds)
            report(StepFinished(step, self._preview(request, step)))
        report(PhaseStarted("post_processing"))
        for index in range(request.n):
            seed = request.seed + index
            image = self._picture(request, seed)
            tokens = len(request.prompt.split())
            report(ImageFinished(index, image, seed, request.media_type, tokens))

    def _preview(self, request: GenerationRequest, step: int) -> bytes | None:
        index, done = divmod(step - 1, request.steps_per_image)
        shown = done + 1 in request.preview_steps
        return self._picture(request, request.seed + index) if shown else None

    def _picture(self, request: GenerationRequest, seed: int) -> bytes:
        shape = (request.height, request.width, 3)
        if self._times.noise:
            pixels = _noise(shape)
        else:
            digest = hashlib.sha256(f"{seed} {request.prompt}".encode()).digest()
            flat = digest[:3] * (request.width * request.height)
            pixels = np.frombuffer(flat, np.uint8).reshape(shape)
        return image_codec.encode(pixels, request, seed)

    def unload(self) -> None:
        pass


@cache
def _noise(shape: tuple[int, int, int]) -> image_codec.Pixels:
    """As hard to compress as a photograph: smooth, with a little noise on it."""
    height, width, _ = shape
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    smooth = np.stack([across, down, (across + down) / 2], axis=2)
    noise = np.random.default_rng(0).normal(20, 6, shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)
