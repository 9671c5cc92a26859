"""Control networks: a picture of edges, depth or a pose has its say in what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.errors import InvalidRequest
from app.domain.model_card import Defaults, ModelCard, within
from app.domain.model_source import hub_source, is_single_file
from app.domain.pipelines import Task
from app.domain.request import Arguments, GenerationRequest

PARAM = "control.model"
"""The field that is at fault where a network is, also when its weights are."""

MAX_SCALE = 10.0
"""Of `controlnet_conditioning_scale`: far beyond what makes sense."""

Steered = Literal[
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
]
"""The kinds of model that networks are made for."""

_ALL: tuple[Task, ...] = ("text2image", "image2image", "inpaint")

STEERED: Mapping[str, tuple[Steered, tuple[Task, ...]]] = {
    "StableDiffusionPipeline": ("StableDiffusionPipeline", _ALL),
    "StableDiffusionInpaintPipeline": ("StableDiffusionPipeline", ("inpaint",)),
    "StableDiffusionXLPipeline": ("StableDiffusionXLPipeline", _ALL),
    "StableDiffusionXLInpaintPipeline": ("StableDiffusionXLPipeline", ("inpaint",)),
    "StableDiffusion3Pipeline": ("StableDiffusion3Pipeline", ("text2image",)),
    "FluxPipeline": ("FluxPipeline", _ALL),
}
"""By a model's pipeline: the kind that its networks are made for, and the tasks in which it listens."""


class ControlCard(BaseModel):
    """One control network: its id, the kind of model that it steers, and where its weights lie.

    `source` and `revision` are as on a model's card; the folder or repository is that of the network
    alone, with a `config.json` and no index. `shows` says what its pictures show: "canny", "depth" …
    `controlnet_conditioning_scale` is what a request gets that does not say how much it counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    aliases: tuple[str, ...] = ()
    pipeline: Steered
    source: str
    revision: str = Field(default="", pattern=r"^[A-Za-z0-9._+-]{0,64}$")
    title: str = ""
    licence: str = ""
    shows: str = ""
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0, le=MAX_SCALE)

    @model_validator(mode="after")
    def _a_folder(self) -> Self:
        if is_single_file(self.source):
            raise ValueError("source names the folder with the network's config.json")
        hub_source(self.source, self.revision)
        return self

    @property
    def files(self) -> ModelCard:
        """The same for all that brings, keeps and loads files."""
        return ModelCard(
            id=self.id,
            aliases=self.aliases,
            family="control",
            source=self.source,
            revision=self.revision,
            title=self.title,
            licence=self.licence,
            tasks=(),
            defaults=Defaults(sampler="none"),
        )

    def steers(self, card: ModelCard) -> bool:
        """Whether models like this one listen to the network."""
        kind, tasks = STEERED.get(card.pipeline_name, ("", ()))
        return kind == self.pipeline and bool(set(tasks) & set(card.tasks))


Controls = Mapping[str, ControlCard]


def named(controls: Controls, name: str) -> ControlCard | None:
    """The network of this id, or else alias."""
    return controls.get(name) or next(
        (one for one in controls.values() if name in one.aliases), None
    )


def with_control(
    request: GenerationRequest, given: Arguments, controls: Controls
) -> GenerationRequest:
    """The request, under the control that was asked for. Raises InvalidRequest."""
    if not given.control:
        if given.control_image is not None:
            raise InvalidRequest("Name the control network for this picture.", param=PARAM)
        return request
    card = named(controls, given.control)
    if card is None:
        known = ", ".join(controls) or "none"
        raise InvalidRequest(f"This control network is not known. Known: {known}.", param=PARAM)
    kind, tasks = STEERED.get(request.pipeline, ("", ()))
    if request.task not in tasks:
        can = f"{', '.join(tasks)} only" if tasks else "nothing"
        text = f"Model {request.model} can do {can} under control."
        raise InvalidRequest(text, param="control")
    if card.pipeline != kind:
        raise InvalidRequest(
            f"Control network {card.id} is made for {card.pipeline}, and model {request.model} is a "
            f"{request.pipeline}.",
            param=PARAM,
        )
    if given.control_image is None:
        raise InvalidRequest("Control needs a picture that is made for it.", param="control.image")
    scale = given.controlnet_conditioning_scale
    start = _share("control_guidance_start", given.control_guidance_start, 0.0)
    end = _share("control_guidance_end", given.control_guidance_end, 1.0)
    if start >= end:
        raise InvalidRequest(
            "control_guidance_start must be below control_guidance_end.",
            param="control.control_guidance_start",
        )
    return msgspec.structs.replace(
        _as_it_can_be(request),
        control=card.id,
        control_image=given.control_image,
        controlnet_conditioning_scale=within(
            "control.controlnet_conditioning_scale",
            float(card.controlnet_conditioning_scale if scale is None else scale),
            0.0,
            MAX_SCALE,
        ),
        control_guidance_start=start,
        control_guidance_end=end,
        technique="",  # none was measured under control
    )


def _share(name: str, given: float | None, default: float) -> float:
    return within(f"control.{name}", float(default if given is None else given), 0.0, 1.0)


def _as_it_can_be(request: GenerationRequest) -> GenerationRequest:
    """Under control, Flux draws its edits with one forward a step: there is no negative prompt."""
    if request.pipeline == "FluxPipeline" and request.task != "text2image":
        return msgspec.structs.replace(request, negative_prompt="", true_cfg_scale=1.0)
    return request
