"""What clients ask for, out of messages."""

from __future__ import annotations

import secrets
from typing import Any

from msgspec.structs import replace
from pydantic import ValidationError

from app.api._control import with_picture
from app.api._fields import PictureFields, refused
from app.api._pictures import checked, upright_size, without_alpha
from app.api.grpc import starweave_pb2 as pb
from app.domain.errors import InvalidRequest
from app.domain.request import Arguments

_SEEDS = 2**31
"""What `seed` can hold: seeds are drawn below it, so that every picture can be asked for again."""

_LONGEST = 86_400.0
"""Seconds of a deadline that a job is told of."""


class ImageFields(PictureFields):
    """The text fields of an `ImageRequest`."""

    previews: int | None = None

    def to_arguments(self) -> Arguments:
        return replace(super().to_arguments(), previews=self.previews)


def arguments_of(
    message: pb.ImageRequest, *, n: int = 1, remaining: float | None = None
) -> Arguments:
    """The same in diffusers' names, for `n` pictures, and to be done in `remaining` seconds.

    Raises InvalidRequest.
    """
    try:
        given = ImageFields.model_validate(_fields(message)).to_arguments()
    except ValidationError as error:
        raise refused(error) from error
    if given.seed in (None, -1):
        given = replace(given, seed=secrets.randbelow(max(1, _SEEDS - n)))
    if remaining is not None and 0 < remaining < _LONGEST:
        given = replace(given, terms=replace(given.terms, deadline=round(remaining, 3)))
    return _with_pictures(replace(given, n=n), message)


def variations_of(message: pb.ImageVariationsRequest) -> tuple[pb.ImageRequest, int]:
    """The request that all of them have, and how many there are. Raises InvalidRequest."""
    if message.count < 0:
        raise InvalidRequest("count must be at least 1.", param="n")
    base = message.base_request
    if message.variation_strength and base.image:
        if base.settings.HasField("strength"):
            raise InvalidRequest("Send strength or variation_strength.", param="strength")
        base.settings.strength = message.variation_strength
    return base, message.count or 1


def _fields(message: pb.ImageRequest) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": message.prompt, "model": message.model}
    for field, value in message.settings.ListFields():
        given[field.name] = _meant(value) if isinstance(value, float) else value
    if "loras" in given:
        given["loras"] = [_lora(one) for one in message.settings.loras]
    if message.HasField("control"):
        given["control"] = {
            field.name: _meant(value) if isinstance(value, float) else value
            for field, value in message.control.ListFields()
            if field.name != "image"
        }
    return given


def _lora(lora: pb.Lora) -> dict[str, Any]:
    return {"name": lora.name, **({"scale": _meant(lora.scale)} if lora.HasField("scale") else {})}


def _meant(number: float) -> float:
    """What was written in the client's source: a float on the wire holds 7.1 as 7.099999904632568."""
    return float(f"{number:.7g}")


def _with_pictures(given: Arguments, message: pb.ImageRequest) -> Arguments:
    if message.image:
        image = checked(message.image, "image")
        given = replace(given, image=image, image_size=upright_size(image, "image"))
    if message.mask_image:
        mask = without_alpha(checked(message.mask_image, "mask_image"), "mask_image")
        given = replace(given, mask_image=mask)
    if message.control.image:
        given = with_picture(given, checked(message.control.image, "control.image"))
    return given
