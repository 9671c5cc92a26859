"""Enlarging pictures: those that are sent, and those that were just drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from app.domain.errors import InvalidRequest
from app.domain.model_card import ModelCard, output_format_of, within
from app.domain.request import Arguments, GenerationRequest

LANCZOS = "lanczos"
"""The upscaler that is always there."""

TILE = 192
"""Pixels of a side of what a network enlarges at once: some 1.5 GB of activations at most."""

MAX_PIXELS = 64 * 1024 * 1024
"""Of an enlarged picture."""


class Upscaler(msgspec.Struct, frozen=True):
    """`scales` are the factors that it can be asked for."""

    card: ModelCard
    scales: tuple[int, ...]

    def check(self, scale: int, size: tuple[int, int]) -> None:
        """Raises InvalidRequest: this cannot be done to a picture of `size` (pixels)."""
        if scale not in self.scales:
            raise self.wrong_scale()
        if size[0] * size[1] * scale * scale > MAX_PIXELS:
            raise InvalidRequest(
                f"The enlarged picture would have more than {MAX_PIXELS // 2**20} megapixels.",
                param="upscale",
            )

    def wrong_scale(self) -> InvalidRequest:
        known = " or ".join(map(str, self.scales))
        return InvalidRequest(f"Upscaler {self.card.id} enlarges by {known}.", param="upscale")


Upscalers = Mapping[str, Upscaler]


def enlarging(upscaler: Upscaler, given: Arguments, *, metadata: bool) -> GenerationRequest:
    """The request to enlarge the picture that was sent, by 2 if nothing else is said.

    Raises InvalidRequest.
    """
    if given.control or given.control_image is not None:
        raise InvalidRequest("An upscaler takes no control.", param="control")
    scale = 2 if given.upscale is None else given.upscale
    if given.loras:
        raise InvalidRequest(f"Upscaler {upscaler.card.id} takes no LoRAs.", param="loras")
    if scale not in upscaler.scales:
        raise upscaler.wrong_scale()
    width, height = given.image_size or ((given.width or 0) // scale, (given.height or 0) // scale)
    upscaler.check(scale, (width, height))
    plain = upscaler.card.id == LANCZOS
    return GenerationRequest(
        model=upscaler.card.id,
        family="upscaler",
        task="upscale",
        prompt="",
        negative_prompt="",
        n=1,
        width=width * scale,
        height=height * scale,
        num_inference_steps=1 if plain else math.ceil(width / TILE) * math.ceil(height / TILE),
        guidance_scale=0.0,
        true_cfg_scale=1.0,
        sampler="none",
        seed=0,
        strength=1.0,
        output_format=output_format_of(given.output_format),
        output_compression=within(
            "output_compression",
            100 if given.output_compression is None else given.output_compression,
            0,
            100,
        ),
        max_sequence_length=0,
        pipeline="Upscaler",
        metadata=metadata if given.metadata is None else given.metadata,
        upscale=scale,
        image=given.image,
    )


def with_upscaling(
    request: GenerationRequest, given: Arguments, upscalers: Upscalers
) -> GenerationRequest:
    """The request, with its pictures to be enlarged as was asked for. Raises InvalidRequest."""
    if given.upscale in (None, 1):
        return request
    name = given.upscaler or LANCZOS
    if name not in upscalers:
        known = ", ".join(upscalers)
        raise InvalidRequest(f"This upscaler is not known. Upscalers: {known}.", param="upscaler")
    upscalers[name].check(given.upscale, (request.width, request.height))
    return msgspec.structs.replace(request, upscale=given.upscale, upscaler=name)
