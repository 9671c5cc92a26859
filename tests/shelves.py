"""A shelf whose models come from a mirror, with a cache of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.model_card import Defaults, ModelCard
from app.model_files.shelf import ModelShelf
from app.model_files.state import ModelFiles
from app.model_files.usage import Usage
from app.settings import BUNDLED
from tests.hub_mirror import COMMIT

REPO = "tests/painter"
UNET = "unet/diffusion_pytorch_model.safetensors"


def repository(folder: Path) -> Path:
    """A trained model as a repository holds it: with copies and programs that nobody needs."""
    shutil.copytree(BUNDLED / "sketch", folder)
    (folder / "README.md").write_text("# A painter\n")
    (folder / "painter.ckpt").write_bytes(b"a pickle" * 100)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle" * 100)
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half" * 100)
    (folder / "vae" / "pipeline.py").write_text("print('no')\n")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    return folder


def hub_card(model: str = "painter", **given: Any) -> ModelCard:
    return ModelCard.model_validate(
        {
            "id": model,
            "family": "stable_diffusion",
            "source": f"hub:{REPO}",
            "revision": COMMIT,
            "defaults": Defaults(sampler="ddim", width=128, height=128, num_inference_steps=2),
            **given,
        }
    )


def shelf_of(folder: Path, *cards: ModelCard, **given: Any) -> ModelShelf:
    usage = Usage(folder / "model_use.json")
    known = {card.id: card for card in cards}
    return ModelShelf(known, usage, bundled=BUNDLED, cache=folder / "hub", **given)


def until(look: Callable[[], ModelFiles], seconds: float = 30.0) -> list[ModelFiles]:
    """All that is seen of a download to its end, the end included."""
    seen = [look()]
    deadline = time.monotonic() + seconds
    while seen[-1].state == "downloading":
        assert time.monotonic() < deadline, seen[-1]
        time.sleep(0.005)
        seen.append(look())
    return seen


def pulled(shelf: ModelShelf, model: str = "painter") -> list[ModelFiles]:
    shelf.pull(model)
    return until(lambda: shelf.state(model))
