"""An engine without a model: the same events, any size, any speed, no torch.

For tests of everything around engines, for benchmarks of the gateway alone, and as the shortest
example of an engine. Its picture is a flat colour that depends on prompt and seed, or noise.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np

from app.domain.events import ImageFinished, PhaseStarted, Waited
from app.domain.model_card import FakeTimes, ModelCard
from app.domain.picture_facts import Origin, about
from app.domain.request import GenerationRequest
from app.engines import image_codec
from app.engines.base import ALONE, Report, Sharing
from app.engines.image_codec import Pixels
from app.engines.run_gate import RunGate
from app.engines.side_by_side import side_by_side
from app.engines.turnstile import Turnstile


class FakeEngine:
    """Sleeps as long as its card says, in place of loading and of each step."""

    memory = 0

    def __init__(self, turnstile: Turnstile | None = None) -> None:
        self._turnstile = turnstile or Turnstile()
        self._times = FakeTimes()
        self._id = ""

    def load(self, card: ModelCard, device: str) -> None:
        self._times, self._id = card.fake, card.id
        time.sleep(card.fake.load_seconds)

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        report(PhaseStarted("preparing"))
        gate = RunGate(report, request)
        at_once = 1 if request.preset == "strict" else sharing.batch
        side_by_side(partial(self._draw, request, report, sharing, gate), request.n, at_once)

    def _draw(
        self,
        request: GenerationRequest,
        report: Report,
        sharing: Sharing,
        gate: RunGate,
        index: int,
    ) -> None:
        seed = request.seed + index
        kind = (self._id, request.width, request.height)
        with self._turnstile.rider(sharing, partial(report, Waited())) as rider:
            gate.loop_began()
            for step in range(1, request.steps_per_image + 1):
                rider.share(kind, None, self._step)
                preview = None
                if step in request.preview_steps:
                    preview = image_codec.encode(self._pixels(request, seed), request)
                gate.stepped(index, step, preview, rider)
            gate.loop_ended(index)
        tokens = len(request.prompt.split())
        pixels = self._pixels(request, seed)
        image = image_codec.encode(pixels, request, about(request, seed, Origin()))
        small = image_codec.thumbnail(pixels) if self._times.thumbnails else None
        report(ImageFinished(index, image, seed, request.media_type, tokens, small))

    def _step(self, pictures: Sequence[None]) -> Sequence[None]:
        """One step of as many pictures as the card lets share one; more take as much longer."""
        time.sleep(self._times.step_seconds * math.ceil(len(pictures) / self._times.batch))
        return pictures

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        counts = [count for count in (1, 2, 4, 8) if count <= self._times.batch]
        return dict.fromkeys(counts, self._times.step_seconds) if counts[1:] else {}

    def _pixels(self, request: GenerationRequest, seed: int) -> Pixels:
        shape = (request.height, request.width, 3)
        if self._times.noise:
            return _noise(shape)
        digest = hashlib.sha256(f"{seed} {request.prompt}".encode()).digest()
        flat = digest[:3] * (request.width * request.height)
        return np.frombuffer(flat, np.uint8).reshape(shape)

    def unload(self) -> None:
        pass


@cache
def _noise(shape: tuple[int, int, int]) -> Pixels:
    """As hard to compress as a photograph: smooth, with a little noise on it."""
    height, width, _ = shape
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    smooth = np.stack([across, down, (across + down) / 2], axis=2)
    noise = np.random.default_rng(0).normal(20, 6, shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)
