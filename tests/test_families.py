"""Every kind of model that there is, drawn by a real gateway from one card each.

The folders hold the real classes with tiny random weights. Promised, for each pipeline and task: a
picture of the size that was asked for, every step told, a preview on the way, and the picture is bit
for bit the stock pipeline's.
"""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from app.domain.pipelines import PIPELINES
from tests import zoo, zoo_transformers
from tests.gateway import Gateway, running_gateway
from tests.pictures import from_base64

pytestmark = pytest.mark.filterwarnings("ignore")

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
    """A folder of class `pipeline`, what its card says beside that, and what is asked of it.

    `stock` are the arguments of the stock pipelines, `asked` the fields of the body that mean them.
    """

    pipeline: str
    parts: Any
    tasks: Mapping[str, str]
    stock: Call
    asked: Call = field(default_factory=dict)
    card: str = ""
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

CASES = [(name, task) for name, kind in KINDS.items() for task in kind.tasks]

OURS_ALONE = {"guidance_scale", "true_cfg_scale", "negative_prompt"}
"""Of the stock arguments those that a body can give; the others are the card's."""


def card_of(name: str, kind: Kind, folder: Path) -> str:
    tasks = ", ".join(f'"{task}"' for task in kind.tasks)
    return (
        f'id = "{name}"\nfamily = "{PIPELINES[kind.pipeline].family}"\n'
        f'pipeline = "{kind.pipeline}"\nsource = "{folder}"\ntasks = [{tasks}]\n{kind.card}'
        f"[defaults]\nwidth = {SIDE}\nheight = {SIDE}\nnum_inference_steps = 3\n"
        f'sampler = "{kind.sampler}"\n'
        f"max_sequence_length = {kind.length}\n[limits]\nmin_side = 32\nmultiple = 16\n"
    )


def save(kind: Kind, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = getattr(diffusers, kind.pipeline)(**kind.parts())
    built.save_pretrained(folder)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def gateway(house: Path) -> Iterator[Gateway]:
    for part in ("cards", "data"):
        (house / part).mkdir()
    for name, kind in KINDS.items():
        save(kind, house / name)
        (house / "cards" / f"{name}.toml").write_text(card_of(name, kind, house / name))
    environment = {
        "EASEL_MODELS_DIR": str(house / "cards"),
        "EASEL_DEFAULT_MODEL": "sd",
        "EASEL_PRELOAD": "[]",
        "EASEL_DEVICES": '["cpu"]',
    }
    with running_gateway(house / "data", environment) as started:
        yield started


def file_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def ask(gateway: Gateway, task: str, **fields: Any) -> httpx.Response:
    with gateway.client() as client:
        if task == "text2image":
            return client.post("/v1/images/generations", json=fields)
        files = {"image": file_of(PICTURE)}
        if task == "inpaint":
            hole = Image.new("RGBA", PICTURE.size, "black")
            hole.putalpha(Image.eval(MASK, lambda level: 255 - level))
            files["mask"] = file_of(hole)
        return client.post("/v1/images/edits", data=fields, files=files)


def wish(kind: Kind, task: str) -> dict[str, Any]:
    """What is asked, for both sides."""
    given = {key: value for key, value in kind.stock.items() if key in OURS_ALONE}
    steps = 3 if task == "text2image" else 5
    return {"prompt": PROMPT, "num_inference_steps": steps, **given}


def strength_of(kind: Kind, task: str) -> dict[str, float]:
    kept = PIPELINES[kind.pipeline].tasks[task]  # type: ignore[index]
    return {} if kept == "all" else {"strength": 0.5}


@torch.inference_mode()
def drawn_by_hand(house: Path, name: str, task: str) -> np.ndarray[Any, Any]:
    """What stock diffusers draws of the folder, without any code of ours."""
    kind = KINDS[name]
    stock = getattr(diffusers, kind.tasks[task])
    pipeline = stock.from_pretrained(house / name, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    given = {**kind.stock, **wish(kind, task), **strength_of(kind, task)}
    if task != "text2image":
        given["image"] = PICTURE
    if task == "inpaint":
        given["mask_image"] = MASK
    if "width" in inspect.signature(stock.__call__).parameters:
        given.update(SIZE)
    drawn = pipeline(**given, generator=torch.Generator("cpu").manual_seed(7))
    return np.asarray(drawn.images[0])


def steps_told(gateway: Gateway, job: str) -> list[int]:
    with gateway.client() as client:
        text = client.get(f"/jobs/{job}/events").text
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    return [one["step"] for one in told if one.get("phase") == "generating" and one["step"]]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_model_draws_what_its_stock_pipeline_draws(
    gateway: Gateway, house: Path, name: str, task: str
) -> None:
    kind = KINDS[name]
    answer = ask(
        gateway,
        task,
        model=name,
        size=f"{SIDE}x{SIDE}",
        seed=7,
        **wish(kind, task),
        **strength_of(kind, task),
    )
    assert answer.status_code == 200, answer.text
    picture = from_base64(answer.json()["data"][0]["b64_json"])
    assert picture.shape == (SIDE, SIDE, 3)
    kept = {"all": 5, "down": 2, "up": 3}[PIPELINES[kind.pipeline].tasks[task]]  # type: ignore[index]
    total = 3 if task == "text2image" else kept
    assert steps_told(gateway, answer.headers["x-easel-job"]) == list(range(1, total + 1))
    assert picture.std() > 5
    assert np.array_equal(picture, drawn_by_hand(house, name, task))


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if "text2image" in kind.tasks]
)
def test_unfinished_pictures_are_shown_of_every_kind(gateway: Gateway, name: str) -> None:
    body = {"model": name, "prompt": PROMPT, "stream": True, "partial_images": 1, "seed": 7}
    with gateway.client() as client:
        text = client.post("/v1/images/generations", json=body).text
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [one["type"].rpartition(".")[2] for one in told]
    assert kinds == ["partial_image", "completed"], text[:500]
    shown = from_base64(told[0]["b64_json"])
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown.std() > 1
