"""The diffusers pipelines that can be drawn with, and what may be asked of each.

A name is the class that a model folder's own index names. How each is called, and with which classes
it edits, is known by `app/engines/`: a table there has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from app.domain import samplers
from app.domain.samplers import Sampler

Family = Literal[
    "stable_diffusion", "flux", "diffusion_transformer", "upscaler", "control", "lora", "fake"
]
Task = Literal["text2image", "image2image", "inpaint", "upscale"]
Kept = Literal["all", "down", "up"]
"""Which steps run: all, whatever `strength` is; or its share of them, rounded down or up. The rules are
diffusers' own, `get_timesteps` of each pipeline."""


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of one kind of model.

    `tasks` are those it can do; where an edit keeps "all" steps, it follows the prompt's instruction
    and has no `strength`. `negative` names the argument that makes a negative prompt act when it is
    above `threshold`; without one there is none. `guided` is false where `guidance_scale` does nothing.
    `loras` are the families of LoRAs that may fit, as `model_files.lora_facts` calls them; none where
    diffusers has no way to load one.
    """

    family: Family
    tasks: Mapping[Task, Kept]
    samplers: Mapping[str, Sampler]
    negative: Literal["guidance_scale", "true_cfg_scale", ""]
    threshold: float = 1.0
    guided: bool = True
    loras: tuple[str, ...] = ()


_DIFFUSION: Mapping[Task, Kept] = {"text2image": "all", "image2image": "down", "inpaint": "down"}
_FLOW: Mapping[Task, Kept] = {"text2image": "all", "image2image": "up", "inpaint": "up"}
_INSTRUCTED: Mapping[Task, Kept] = {"text2image": "all", "image2image": "all"}
_WORDS_ALONE: Mapping[Task, Kept] = {"text2image": "all"}

_SD, _SDXL = ("sd1", "sd2", "unet"), ("sdxl", "unet")
_FLUX_2 = ("flux2", "flux")
"""LoRAs of both Flux look alike where they act on attention only; shapes tell when they are loaded."""


LORA_FAMILIES = (
    *("sd1", "sd2", "sdxl", "unet", "sd3"),
    *("flux", "flux2", "qwen-image", "z-image", "sana"),
)
"""What a LoRA's file tells of the models that it is for; "unet" is one of the Stable Diffusions."""


def _stable_diffusion(loras: tuple[str, ...], tasks: Mapping[Task, Kept] = _DIFFUSION) -> Pipeline:
    return Pipeline(
        family="stable_diffusion",
        tasks=tasks,
        samplers=samplers.STABLE_DIFFUSION,
        negative="guidance_scale",
        loras=loras,
    )


def _flux(
    tasks: Mapping[Task, Kept],
    negative: Literal["true_cfg_scale", ""] = "true_cfg_scale",
    loras: tuple[str, ...] = ("flux",),
) -> Pipeline:
    return Pipeline(
        family="flux", tasks=tasks, samplers=samplers.FLOW, negative=negative, loras=loras
    )


def _qwen(tasks: Mapping[Task, Kept]) -> Pipeline:
    return Pipeline(
        family="diffusion_transformer",
        tasks=tasks,
        samplers=samplers.FLOW,
        negative="true_cfg_scale",
        guided=False,
        loras=("qwen-image",),
    )


def _transformer(
    tasks: Mapping[Task, Kept],
    known: Mapping[str, Sampler] = samplers.FLOW,
    threshold: float = 1.0,
    loras: tuple[str, ...] = (),
) -> Pipeline:
    return Pipeline(
        family="diffusion_transformer",
        tasks=tasks,
        samplers=known,
        negative="guidance_scale",
        threshold=threshold,
        loras=loras,
    )


PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        # Stable Diffusion 1.x and 2.x; XL with Turbo and Lightning; those whose UNet sees the mask.
        "StableDiffusionPipeline": _stable_diffusion(_SD),
        "StableDiffusionXLPipeline": _stable_diffusion(_SDXL),
        "StableDiffusionInpaintPipeline": _stable_diffusion(_SD, {"inpaint": "down"}),
        "StableDiffusionXLInpaintPipeline": _stable_diffusion(_SDXL, {"inpaint": "down"}),
        # Flux.1 schnell and dev, Kontext, Fill; Flux.2 klein, dev.
        "FluxPipeline": _flux(_FLOW),
        "FluxKontextPipeline": _flux(_INSTRUCTED),
        "FluxFillPipeline": _flux({"inpaint": "up"}, negative=""),
        "Flux2KleinPipeline": _flux(_INSTRUCTED, negative="", loras=_FLUX_2),
        "Flux2Pipeline": _flux(_INSTRUCTED, negative="", loras=_FLUX_2),
        # Stable Diffusion 3 and 3.5, Z-Image, Qwen-Image, Qwen-Image-Edit (2509 and later are "Plus").
        "StableDiffusion3Pipeline": _transformer(_FLOW, loras=("sd3",)),
        "ZImagePipeline": _transformer(_FLOW, threshold=0.0, loras=("z-image",)),
        "QwenImagePipeline": _qwen(_FLOW),
        "QwenImageEditPipeline": _qwen({"image2image": "all"}),
        "QwenImageEditPlusPipeline": _qwen({"image2image": "all"}),
        "SanaPipeline": _transformer(_WORDS_ALONE, samplers.SANA, loras=("sana",)),
        "PixArtAlphaPipeline": _transformer(_WORDS_ALONE, samplers.PIXART),
        "PixArtSigmaPipeline": _transformer(_WORDS_ALONE, samplers.PIXART),
        # Draws nothing of its own: a picture is made larger, tile by tile.
        "Upscaler": Pipeline(
            family="upscaler",
            tasks={"upscale": "all"},
            samplers={"none": Sampler("")},
            negative="",
            guided=False,
        ),
        # Draws nothing either: it has a say in what others draw (see `control.py`).
        "ControlNet": Pipeline(
            family="control", tasks={}, samplers={"none": Sampler("")}, negative="", guided=False
        ),
        # Draws nothing either: it is a part of what other models draw.
        "Lora": Pipeline(
            family="lora",
            tasks={},
            samplers={"none": Sampler("")},
            negative="",
            guided=False,
        ),
        # Draws noise, and takes every wish.
        "FakePipeline": Pipeline(
            family="fake",
            tasks=_DIFFUSION,
            samplers=samplers.STABLE_DIFFUSION,
            negative="guidance_scale",
            loras=LORA_FAMILIES,
        ),
    }
)


def first_of(family: Family) -> str:
    """The pipeline of a card that names none."""
    return next(name for name, one in PIPELINES.items() if one.family == family)


def steps_kept(pipeline: str, task: Task, steps: int, strength: float) -> int:
    """How many of the denoising steps really run. `strength` is 0 to 1."""
    rule = PIPELINES[pipeline].tasks[task]
    if rule == "all":
        return steps
    kept = min(steps * strength, steps)
    return int(kept) if rule == "down" else steps - int(steps - kept)
