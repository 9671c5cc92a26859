"""An engine without a model: the same events, any size, any speed, no torch.

For tests of everything around engines, for benchmarks of the gateway alone, and as the shortest
example of an engine. Its picture is a flat colour that depends on prompt and seed.
"""

from __future__ import annotations

import hashlib
import time

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
            image = _flat(request, seed)
            tokens = len(request.prompt.split())
            report(ImageFinished(index, image, seed, request.media_type, tokens))

    def _preview(self, request: GenerationRequest, step: int) -> bytes | None:
        index, done = divmod(step - 1, request.steps_per_image)
        shown = done + 1 in request.preview_steps
        return _flat(request, request.seed + index) if shown else None

    def unload(self) -> None:
        pass


def _flat(request: GenerationRequest, seed: int) -> bytes:
    digest = hashlib.sha256(f"{seed} {request.prompt}".encode()).digest()
    colour = np.frombuffer(digest[:3], np.uint8)
    pixels = np.broadcast_to(colour, (request.height, request.width, 3))
    return image_codec.encode(pixels, request, seed)
