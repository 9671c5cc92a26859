"""A control network, its picture and how much it counts, as clients send them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict

from app.api._pictures import from_base64, upright_size
from app.domain.errors import InvalidRequest
from app.domain.request import Arguments

IMAGE = "control.image"
_IN_A_FORM = re.compile(r"control\[(\w{1,64})\]")


class ControlFields(BaseModel):
    """A network of `GET /controls`, a picture that was made for it (base64), and how much it counts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())

    model: str
    image: str | None = None
    controlnet_conditioning_scale: float | None = None
    control_guidance_start: float | None = None
    control_guidance_end: float | None = None

    def onto(self, arguments: Arguments) -> Arguments:
        """The arguments under this control. Raises InvalidRequest."""
        given = msgspec.structs.replace(
            arguments,
            control=self.model,
            controlnet_conditioning_scale=self.controlnet_conditioning_scale,
            control_guidance_start=self.control_guidance_start,
            control_guidance_end=self.control_guidance_end,
        )
        return given if not self.image else with_picture(given, from_base64(self.image, IMAGE))


def with_picture(arguments: Arguments, picture: bytes) -> Arguments:
    """The arguments with a control picture, whose size is taken where nothing else tells one.

    Raises InvalidRequest.
    """
    if arguments.control_image is not None:
        raise InvalidRequest("Send one control picture: two came.", param=IMAGE)
    size = upright_size(picture, IMAGE)
    usual = arguments.image_size or size
    return msgspec.structs.replace(arguments, control_image=picture, image_size=usual)


def read(given: Any) -> Any:
    """An object that is sent as text, which is how forms hold one."""
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("must be an object, in forms as JSON") from error


def gathered(texts: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form, with those like `control[model]` as one object: so OpenAI's SDKs send it.

    Raises InvalidRequest.
    """
    inner = {match[1]: name for name in texts if (match := _IN_A_FORM.fullmatch(name))}
    if not inner:
        return dict(texts)
    if "control" in texts:
        raise InvalidRequest("control came twice, in two ways.", param="control")
    outer = {name: text for name, text in texts.items() if name not in inner.values()}
    return {**outer, "control": {key: texts[name] for key, name in inner.items()}}
