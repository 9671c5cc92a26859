"""Enlarges pictures: by Lanczos, which needs nothing, or by a network, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from app.domain.errors import InvalidOutput, OutOfMemory
from app.domain.events import ImageFinished, PhaseStarted, StepFinished, Waited
from app.domain.model_card import ModelCard
from app.domain.picture_facts import PARAMETERS, parameters
from app.domain.request import GenerationRequest
from app.domain.upscaling import LANCZOS, TILE
from app.engines import image_codec, picture_text
from app.engines.base import ALONE, Report, Sharing
from app.engines.image_codec import Pixels
from app.engines.turnstile import Rider, Turnstile

if TYPE_CHECKING:
    from app.engines.esrgan import RrdbNet

_MARGIN = 16
"""Pixels around a tile that are enlarged with it and thrown away, so that no seam is seen."""


class Upscaler:
    """An engine, whose pictures are those that it is given. Torch is imported for a network only."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._network: RrdbNet | None = None
        self._device = ""
        self._id = ""

    @property
    def memory(self) -> int:
        if self._network is None:
            return 0
        return sum(one.numel() * one.element_size() for one in self._network.parameters())

    def load(self, card: ModelCard, device: str) -> None:
        self._id, self._device = card.id, device
        if card.id != LANCZOS:
            from app.engines import esrgan

            file = Path(card.source) / f"{card.id}.safetensors"
            self._network = esrgan.load(card.id, file, device)

    def unload(self) -> None:
        self._network = None

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        return {}

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        report(PhaseStarted("preparing"))
        source = image_codec.decode_rgb(request.image or b"", "image", None)
        report(PhaseStarted("generating", request.total_steps))
        done = 0

        def stepped() -> None:
            nonlocal done
            done += 1
            report(StepFinished(min(done, request.total_steps)))

        pixels = self._enlarged(np.asarray(source), request.upscale, report, sharing, stepped)
        report(PhaseStarted("post_processing"))
        about: dict[str, str] = {}
        if request.metadata:
            known = picture_text.read(request.image or b"").facts
            about = known if known.keys() >= {"seed", "model"} else {}  # one of ours
            about |= {"upscaler": self._id, "upscale": str(request.upscale)}
        report(_finished(pixels, request, 0, 0, about))

    def enlarge(
        self, drawn: ImageFinished, request: GenerationRequest, report: Report, sharing: Sharing
    ) -> None:
        """A picture that was just drawn, as PNG, for a request that wants it larger: reported in its
        place, with all that it tells."""
        small = np.asarray(image_codec.decode_rgb(drawn.image, "image", None))
        pixels = self._enlarged(small, request.upscale, report, sharing, lambda: report(Waited()))
        about = picture_text.read(drawn.image).facts
        if about:
            about |= {"upscaler": self._id, "upscale": str(request.upscale)}
            hashes = (about.get("model_hash", ""), about.get("lora_hashes", ""))
            about[PARAMETERS] = parameters(request, drawn.seed, *hashes)
        report(_finished(pixels, request, drawn.index, drawn.seed, about, drawn.prompt_tokens))

    def _enlarged(
        self,
        picture: Pixels,
        scale: int,
        report: Report,
        sharing: Sharing,
        stepped: Callable[[], None],
    ) -> Pixels:
        height, width = picture.shape[:2]
        size = (width * scale, height * scale)
        with self._turnstile.rider(sharing, partial(report, Waited())) as rider:
            if self._network is None:
                large = rider.do(lambda: _resized(picture, size))
                stepped()
                return large
            own = self._network.scale
            large = np.empty((height * own, width * own, 3), np.uint8)
            for top, left in _tiles(height, width):
                self._fill(large, picture, top, left, rider)
                stepped()
            return large if own == scale else rider.do(lambda: _resized(large, size))

    def _fill(self, large: Pixels, picture: Pixels, top: int, left: int, rider: Rider) -> None:
        """Enlarge one tile, with a margin, and put it in its place."""
        height, width = picture.shape[:2]
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        above, before = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
        part = picture[above : bottom + _MARGIN, before : right + _MARGIN]
        tile = rider.do(lambda: self._forward(part))
        assert self._network is not None  # noqa: S101 - the caller has looked
        own = self._network.scale
        inside = tile[
            (top - above) * own : (bottom - above) * own,
            (left - before) * own : (right - before) * own,
        ]
        large[top * own : bottom * own, left * own : right * own] = inside

    def _forward(self, part: Pixels) -> Pixels:
        import torch

        assert self._network is not None  # noqa: S101 - the caller has looked
        try:
            with torch.inference_mode():
                values = torch.from_numpy(part.copy()).to(self._device)
                values = values.permute(2, 0, 1)[None].float() / 255
                result = self._network(values)[0].permute(1, 2, 0)
                if not torch.isfinite(result).all():
                    raise InvalidOutput("The upscaler produced values that are not numbers.")
                whole = (result.clamp(0, 1) * 255).round().to(torch.uint8)
                return np.asarray(whole.cpu().numpy())
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The device has no room to enlarge this picture.") from error


def _tiles(height: int, width: int) -> Iterator[tuple[int, int]]:
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield top, left


def _resized(picture: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _finished(
    pixels: Pixels,
    request: GenerationRequest,
    index: int,
    seed: int,
    about: Mapping[str, str],
    prompt_tokens: int = 0,
) -> ImageFinished:
    image = image_codec.encode(pixels, request, about)
    small = image_codec.thumbnail(pixels)
    return ImageFinished(index, image, seed, request.media_type, prompt_tokens, small)
