"""The fields that every JSON door takes, under all the names that clients give them.

Names on the left are diffusers'. The others are aliases, translated here and nowhere else; two of
them with different values are refused.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from app.api._control import ControlFields, read
from app.domain.errors import InvalidRequest
from app.domain.lora import MAX_SCALE, NAME, Lora
from app.domain.request import Arguments, Priority, Terms

_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_DAY = 86_400.0
Seconds = Annotated[float, Field(ge=1.0, le=_DAY, allow_inf_nan=False)]
_SIZE = re.compile(r"([0-9]{1,5})[xX*]([0-9]{1,5})")


def _listed(given: Any) -> Any:
    """In a form, the list is JSON in text; one object stands for a list of it."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ValueError('not JSON, such as [{"name": "snow", "scale": 0.8}]') from error
    return [given] if isinstance(given, dict) else given


class LoraField(BaseModel):
    """A LoRA by its name in `GET /loras`, and how strongly it acts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    scale: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)] = 1.0


LoraFields = Annotated[list[LoraField], BeforeValidator(_listed)]


class PictureFields(BaseModel):
    """What to draw. Fields that are null or "" count as not given; unknown ones are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())

    ALIASES: ClassVar[dict[str, tuple[str, ...]]] = {
        "num_inference_steps": ("steps", "step"),
        "guidance_scale": ("cfg_scale", "cfg"),
        "sampler": ("sampler_name", "sampling_method", "scheduler"),
        "seed": ("rng_seed",),
        "strength": ("denoising_strength",),
        "preset": ("quality_preset",),
        "upscale": ("scale",),
        "loras": ("lora",),
    }

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    width: int | None = None
    height: int | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    steps: int | None = None
    step: int | None = None
    guidance_scale: float | None = None
    cfg_scale: float | None = None
    cfg: float | None = None
    true_cfg_scale: float | None = None
    sampler: str | None = None
    sampler_name: str | None = None
    sampling_method: str | None = None
    scheduler: str | None = None
    seed: int | None = None
    rng_seed: int | None = None
    strength: float | None = None
    denoising_strength: float | None = None
    preset: str | None = None
    quality_preset: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    metadata: bool | None = None
    style: str | None = None
    upscale: int | None = None
    scale: int | None = None
    upscaler: str | None = None
    control: Annotated[ControlFields | None, BeforeValidator(read)] = None
    loras: LoraFields | None = None
    lora: LoraFields | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    priority: Priority | None = None
    deadline: Seconds | None = None
    timeout: Seconds | None = None
    webhook: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            key: value
            for key, value in given.items()
            if value is not None and (value != "" or key == "prompt")
        }

    @model_validator(mode="after")
    def _no_transparency(self) -> Self:
        if self.background == "transparent":
            raise InvalidRequest(
                "No model here draws a transparent background; use auto or opaque.",
                param="background",
            )
        return self

    @property
    def unknown(self) -> list[str]:
        """Names of fields that this body does not have, as far as they may be repeated to anybody."""
        return [name for name in self.model_extra or () if _NAME.fullmatch(name)][:20]

    def to_arguments(self) -> Arguments:
        """The same in diffusers' names. Raises InvalidRequest."""
        width, height = self._sides()
        given = Arguments(
            prompt=self.prompt,
            model=self.model,
            n=self.n,
            width=width,
            height=height,
            negative_prompt=self.negative_prompt,
            num_inference_steps=self._one_of("num_inference_steps"),
            guidance_scale=self._one_of("guidance_scale"),
            true_cfg_scale=self.true_cfg_scale,
            sampler=self._one_of("sampler"),
            seed=self._one_of("seed"),
            strength=self._one_of("strength"),
            preset=self._one_of("preset"),
            output_format=self.output_format,
            output_compression=self.output_compression,
            metadata=self.metadata,
            upscale=self._one_of("upscale"),
            upscaler=self.upscaler,
            styles=(self.style,) if self.style else (),
            loras=tuple(Lora(one.name, one.scale) for one in self._one_of("loras") or ()),
            webhook=self.webhook,
            terms=Terms(
                priority=self.priority or "interactive",
                deadline=self.deadline,
                timeout=self.timeout,
            ),
        )
        return self.control.onto(given) if self.control else given

    def _one_of(self, name: str) -> Any:
        names = (name, *self.ALIASES[name])
        given = {alias: value for alias in names if (value := getattr(self, alias)) is not None}
        first, *others = given.values() or (None,)
        if any(other != first for other in others):
            raise InvalidRequest(
                f"{' and '.join(given)} mean the same and have different values.", param=name
            )
        return first

    def _sides(self) -> tuple[int | None, int | None]:
        """Width and height; given on their own they go before `size`."""
        if self.size is None or self.size == "auto":
            return self.width, self.height
        match = _SIZE.fullmatch(self.size.strip())
        if match is None:
            raise InvalidRequest('size must be like "512x512", or "auto".', param="size")
        width, height = int(match[1]), int(match[2])
        return self.width or width, self.height or height


def refused(error: ValidationError) -> InvalidRequest:
    """The first of the mistakes in a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "body"
    return InvalidRequest(f"{name}: {first['msg']}.", param=name)
