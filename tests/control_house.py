"""Tiny control networks of the real classes, and what stock diffusers draws under them."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from app.domain.pipelines import PIPELINES
from app.engines.image_codec import Pixels
from tests import zoo
from tests.kinds import KINDS, MASK, PICTURE, SIDE, SIZE, card_of, save, strength_of, wish

SEED = 7


def noise(seed: int, side: int = SIDE) -> Image.Image:
    """A control picture: what it shows does not matter to random weights."""
    levels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((side, side))


CONTROL, OTHER = noise(1), noise(2)

NETWORKS: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "canny": ("StableDiffusionPipeline", zoo.controlnet),
    "depth": ("StableDiffusionPipeline", zoo.controlnet),
    "wide": ("StableDiffusionPipeline", partial(zoo.controlnet, cross_attention_dim=48)),
    "xl": ("StableDiffusionXLPipeline", partial(zoo.controlnet, **zoo.CONTROL_OF_XL)),
    "of-flux": ("FluxPipeline", zoo.flux_controlnet),
    "of-sd3": ("StableDiffusion3Pipeline", zoo.sd3_controlnet),
}
"""By name: the kind of model that it is made for, and how it is made."""

STOCK: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sd": (
        "canny",
        {
            "text2image": "StableDiffusionControlNetPipeline",
            "image2image": "StableDiffusionControlNetImg2ImgPipeline",
            "inpaint": "StableDiffusionControlNetInpaintPipeline",
        },
    ),
    "sd-inpaint": ("canny", {"inpaint": "StableDiffusionControlNetInpaintPipeline"}),
    "sdxl": (
        "xl",
        {
            "text2image": "StableDiffusionXLControlNetPipeline",
            "image2image": "StableDiffusionXLControlNetImg2ImgPipeline",
            "inpaint": "StableDiffusionXLControlNetInpaintPipeline",
        },
    ),
    "sd3": ("of-sd3", {"text2image": "StableDiffusion3ControlNetPipeline"}),
    "flux": (
        "of-flux",
        {
            "text2image": "FluxControlNetPipeline",
            "image2image": "FluxControlNetImg2ImgPipeline",
            "inpaint": "FluxControlNetInpaintPipeline",
        },
    ),
}
"""By model: its network, and diffusers' class for each task."""


def network(name: str) -> Any:
    _, make = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.random_weights(make(), seed=sum(map(ord, name)))


def build(
    house: Path, models: Iterable[str] = STOCK, networks: Iterable[str] = NETWORKS
) -> dict[str, str]:
    """Models, networks and their cards in a folder; the settings of a gateway that has them."""
    for part in ("cards", "controls", "data"):
        (house / part).mkdir()
    for name in models:
        save(KINDS[name], house / name)
        (house / "cards" / f"{name}.toml").write_text(card_of(name, KINDS[name], house / name))
    for name in networks:
        network(name).save_pretrained(house / "networks" / name)
        add_card(house, name, NETWORKS[name][0])
    return {
        "EASEL_MODELS_DIR": str(house / "cards"),
        "EASEL_CONTROLS_DIR": str(house / "controls"),
        "EASEL_DEFAULT_MODEL": "sd",
        "EASEL_PRELOAD": "[]",
        "EASEL_DEVICES": '["cpu"]',
    }


def add_card(house: Path, name: str, pipeline: str, more: str = "") -> None:
    text = f'id = "{name}"\npipeline = "{pipeline}"\nsource = "{house / "networks" / name}"\n{more}'
    (house / "controls" / f"{name}.toml").write_text(text)


def file_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encoded(picture: Image.Image) -> str:
    return base64.b64encode(file_of(picture)).decode()


def asked(name: str, task: str) -> dict[str, Any]:
    """What a client says beside the control, for both sides."""
    given = {**wish(KINDS[name], task), **strength_of(KINDS[name], task)}
    if name == "flux" and task != "text2image":  # has one forward a step, under control
        del given["true_cfg_scale"], given["negative_prompt"]
    return given


def by_hand(house: Path, name: str, task: str, picture: Image.Image, **control: float) -> Pixels:
    """What stock diffusers draws under control, without any code of ours."""
    return by_hand_with(lambda _: None, house, name, task, picture, **control)


@torch.inference_mode()
def by_hand_with(
    prepare: Callable[[Any], None],
    house: Path,
    name: str,
    task: str,
    picture: Image.Image,
    **control: float,
) -> Pixels:
    """The same from a pipeline to which `prepare` does something."""
    kind, (own, classes) = KINDS[name], STOCK[name]
    stock = getattr(diffusers, classes[task])
    told = type(network(own)).from_pretrained(house / "networks" / own, dtype=torch.float32)
    pipeline = stock.from_pretrained(house / name, controlnet=told, dtype=torch.float32)
    prepare(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    known = inspect.signature(stock.__call__).parameters
    given = {key: value for key, value in kind.stock.items() if key in known}
    given |= {**asked(name, task), "controlnet_conditioning_scale": 1.0, **control}
    given["control_image" if "control_image" in known else "image"] = picture
    if task != "text2image":
        given["image"] = PICTURE
    if task == "inpaint":
        given["mask_image"] = MASK
    if PIPELINES[kind.pipeline].family != "stable_diffusion" or task != "image2image":
        given |= SIZE
    torch.manual_seed(SEED)  # that of Stable Diffusion 3 encodes the control picture by it
    drawn = pipeline(**given, generator=torch.Generator("cpu").manual_seed(SEED))
    return np.asarray(drawn.images[0])
