"""What the engine must be told of a diffusers pipeline to draw with it.

A family file is a table of recipes, by the class that a model folder's index names. What may be asked
of each pipeline is in `app/domain/pipelines.py`, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from app.domain.pipelines import Task
from app.domain.request import GenerationRequest

Arguments = Callable[[GenerationRequest], dict[str, Any]]
Decodable = Callable[[Any, Tensor, GenerationRequest], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to draw with the folders of one pipeline class.

    `classes` serve the tasks, all over the same parts; the first is the one that loads the folder.
    `arguments` are those of the call, without pictures, generator and callback. `decodable` makes of
    the denoising loop's latents what the VAE's decoder takes, as 1 x channels x height x width.
    `tokenizer` is the part whose tokens count as the prompt's. `layers` are those of a large language
    model that the pipeline looks at: the others need not be remembered. `has_step_end` is false of
    pipelines that know only the older `callback`.
    """

    classes: Mapping[Task, type[DiffusionPipeline]]
    arguments: Arguments
    decodable: Decodable
    tokenizer: str = "tokenizer"
    layers: tuple[int, ...] = ()
    has_step_end: bool = True


def basics(request: GenerationRequest) -> dict[str, Any]:
    """The arguments that all pipelines take."""
    return {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
    }


def size(request: GenerationRequest) -> dict[str, Any]:
    """Always passed where it can be: pipelines fall back to the size that they were published with,
    whatever the folder says."""
    return {"width": request.width, "height": request.height}


def strength(request: GenerationRequest) -> dict[str, Any]:
    """Of edits that draw a picture anew."""
    return {} if request.task == "text2image" else {"strength": request.strength}


def unscaled(pipeline: Any, latents: Tensor, request: GenerationRequest) -> Tensor:
    """Undoes the one scale that most VAEs have, and the shift of newer ones."""
    config = pipeline.vae.config
    unshifted: Tensor = latents / config.scaling_factor
    return unshifted + (config.get("shift_factor") or 0.0)
