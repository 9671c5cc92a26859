"""One kind of model folder for each pipeline: what its card says, and what is asked of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from app.domain.pipelines import PIPELINES
from app.engines.image_codec import Pixels
from tests import zoo, zoo_transformers

SIDE = 64
PROMPT = "a red fox"
PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
).resize((SIDE, SIDE))
MASK = Image.fromarray(np.pad(np.full((SIDE, SIDE // 2), 255, np.uint8), ((0, 0), (SIDE // 2, 0))))
SIZE = {"width": SIDE, "height": SIDE}
NEGATIVE = {"negative_prompt": "a blue hen"}

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A folder of class `pipeline`, made of `parts`; the stock class of each task, and arguments that
    all of them take. `sampler` and `length` (in tokens) are the card's."""

    pipeline: str
    parts: Any
    tasks: Mapping[str, str]
    stock: Call
    sampler: str = "euler"
    length: int = 16


GUIDED = {"guidance_scale": 4.0, **NEGATIVE}
TRUE_CFG = {"true_cfg_scale": 3.0, **NEGATIVE}

KINDS: dict[str, Kind] = {
    "sd": Kind(
        "StableDiffusionPipeline",
        zoo.PARTS["StableDiffusionPipeline"],
        {
            "text2image": "StableDiffusionPipeline",
            "image2image": "StableDiffusionImg2ImgPipeline",
            "inpaint": "StableDiffusionInpaintPipeline",
        },
        GUIDED,
        sampler="ddim",
    ),
    "sd-inpaint": Kind(
        "StableDiffusionInpaintPipeline",
        zoo.PARTS["StableDiffusionInpaintPipeline of nine channels"],
        {"inpaint": "StableDiffusionInpaintPipeline"},
        GUIDED,
        sampler="ddim",
    ),
    "sdxl": Kind(
        "StableDiffusionXLPipeline",
        zoo.PARTS["StableDiffusionXLPipeline"],
        {
            "text2image": "StableDiffusionXLPipeline",
            "image2image": "StableDiffusionXLImg2ImgPipeline",
            "inpaint": "StableDiffusionXLInpaintPipeline",
        },
        GUIDED,
    ),
    "sd3": Kind(
        "StableDiffusion3Pipeline",
        zoo.PARTS["StableDiffusion3Pipeline"],
        {
            "text2image": "StableDiffusion3Pipeline",
            "image2image": "StableDiffusion3Img2ImgPipeline",
            "inpaint": "StableDiffusion3InpaintPipeline",
        },
        {**GUIDED, "max_sequence_length": 16},
    ),
    "flux": Kind(
        "FluxPipeline",
        zoo.PARTS["FluxPipeline"],
        {
            "text2image": "FluxPipeline",
            "image2image": "FluxImg2ImgPipeline",
            "inpaint": "FluxInpaintPipeline",
        },
        {"guidance_scale": 4.0, **TRUE_CFG, "max_sequence_length": 16},
    ),
    "kontext": Kind(
        "FluxKontextPipeline",
        zoo.PARTS["FluxKontextPipeline"],
        {"text2image": "FluxKontextPipeline", "image2image": "FluxKontextPipeline"},
        {"guidance_scale": 4.0, **TRUE_CFG, "max_sequence_length": 16, "max_area": SIDE**2},
    ),
    "fill": Kind(
        "FluxFillPipeline",
        zoo.PARTS["FluxFillPipeline"],
        {"inpaint": "FluxFillPipeline"},
        {"guidance_scale": 30.0, "max_sequence_length": 16},
    ),
    "klein": Kind(
        "Flux2KleinPipeline",
        zoo_transformers.flux_2_parts,
        {"text2image": "Flux2KleinPipeline", "image2image": "Flux2KleinPipeline"},
        {"guidance_scale": 1.0, "max_sequence_length": 128},
        length=128,
    ),
    "flux-2": Kind(
        "Flux2Pipeline",
        zoo_transformers.flux_2_dev_parts,
        {"text2image": "Flux2Pipeline", "image2image": "Flux2Pipeline"},
        {"guidance_scale": 4.0, "max_sequence_length": 1024},
        length=1024,
    ),
    "z-image": Kind(
        "ZImagePipeline",
        zoo_transformers.z_image_parts,
        {
            "text2image": "ZImagePipeline",
            "image2image": "ZImageImg2ImgPipeline",
            "inpaint": "ZImageInpaintPipeline",
        },
        {**GUIDED, "max_sequence_length": 128},
        length=128,
    ),
    "qwen": Kind(
        "QwenImagePipeline",
        zoo_transformers.qwen_parts,
        {
            "text2image": "QwenImagePipeline",
            "image2image": "QwenImageImg2ImgPipeline",
            "inpaint": "QwenImageInpaintPipeline",
        },
        {**TRUE_CFG, "max_sequence_length": 512},
        length=512,
    ),
    "sana": Kind(
        "SanaPipeline",
        zoo_transformers.sana_parts,
        {"text2image": "SanaPipeline"},
        {**GUIDED, "max_sequence_length": 128},
        sampler="dpmpp_2m",
        length=128,
    ),
    "pixart": Kind(
        "PixArtSigmaPipeline",
        zoo_transformers.pixart_parts,
        {"text2image": "PixArtSigmaPipeline"},
        {**GUIDED, "max_sequence_length": 16, "clean_caption": False},
        sampler="dpmpp_2m",
    ),
    "pixart-alpha": Kind(
        "PixArtAlphaPipeline",
        zoo_transformers.pixart_parts,
        {"text2image": "PixArtAlphaPipeline"},
        {**GUIDED, "max_sequence_length": 16, "clean_caption": False},
        sampler="dpmpp_2m",
    ),
}
WITH_TORCHVISION: Mapping[str, Kind] = {
    "qwen-edit": Kind(
        "QwenImageEditPipeline",
        zoo_transformers.qwen_edit_parts,
        {"image2image": "QwenImageEditPipeline"},
        TRUE_CFG,
    ),
    "qwen-edit-plus": Kind(
        "QwenImageEditPlusPipeline",
        zoo_transformers.qwen_edit_parts,
        {"image2image": "QwenImageEditPlusPipeline"},
        TRUE_CFG,
    ),
}
if find_spec("torchvision"):  # transformers' processor of words, pictures and films wants it
    KINDS |= WITH_TORCHVISION

OURS_ALONE = {"guidance_scale", "true_cfg_scale", "negative_prompt"}
"""Of the stock arguments those that a body can give; the others are the card's."""


def card_of(name: str, kind: Kind, folder: Path) -> str:
    tasks = ", ".join(f'"{task}"' for task in kind.tasks)
    return (
        f'id = "{name}"\nfamily = "{PIPELINES[kind.pipeline].family}"\n'
        f'pipeline = "{kind.pipeline}"\nsource = "{folder}"\ntasks = [{tasks}]\n'
        f"[defaults]\nwidth = {SIDE}\nheight = {SIDE}\nnum_inference_steps = 3\n"
        f'sampler = "{kind.sampler}"\n'
        f"max_sequence_length = {kind.length}\n[limits]\nmin_side = 32\nmultiple = 16\n"
    )


def save(kind: Kind, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = getattr(diffusers, kind.pipeline)(**kind.parts())
    built.save_pretrained(folder)


def wish(kind: Kind, task: str) -> dict[str, Any]:
    """What is asked, for both sides."""
    given = {key: value for key, value in kind.stock.items() if key in OURS_ALONE}
    steps = 3 if task == "text2image" else 5
    return {"prompt": PROMPT, "num_inference_steps": steps, **given}


def strength_of(kind: Kind, task: str) -> dict[str, float]:
    kept = PIPELINES[kind.pipeline].tasks[task]  # type: ignore[index]
    return {} if kept == "all" else {"strength": 0.5}


@torch.inference_mode()
def drawn_by_hand(
    house: Path,
    name: str,
    task: str,
    dtype: torch.dtype = torch.float32,
    *,
    force_upcast: bool = False,
    prepare: Callable[[Any], None] = lambda pipeline: None,
) -> Pixels:
    """What stock diffusers draws of the folder, without any code of ours. `prepare` is done to the
    pipeline before."""
    kind = KINDS[name]
    stock = getattr(diffusers, kind.tasks[task])
    pipeline = stock.from_pretrained(house / name, dtype=dtype)
    if force_upcast:
        pipeline.vae.register_to_config(force_upcast=True)
    pipeline.set_progress_bar_config(disable=True)
    prepare(pipeline)
    given = {**kind.stock, **wish(kind, task), **strength_of(kind, task)}
    if task != "text2image":
        given["image"] = PICTURE
    if task == "inpaint":
        given["mask_image"] = MASK
    if "width" in inspect.signature(stock.__call__).parameters:
        given.update(SIZE)
    drawn = pipeline(**given, generator=torch.Generator("cpu").manual_seed(7))
    return np.asarray(drawn.images[0])
