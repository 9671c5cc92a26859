"""Xinference with the same models, where it is installed: EASEL_BENCH_XINFERENCE names its program
(`xinference-local`), in an environment of its own, as it wants other versions than the project.

    python3 -m venv other && other/bin/pip install xinference diffusers
    EASEL_BENCH_XINFERENCE=other/bin/xinference-local python -m bench peers

A torchvision of another build than torch has to be uninstalled there. It answers with JPEG, so its
pixels are never those of the pipeline.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.domain.model_card import ModelCard
from bench.server import HOST, Client, started
from bench.wishes import SPIN_COUNT, Wish, constants

PROGRAM = os.environ.get("EASEL_BENCH_XINFERENCE", "")
"""Empty where it is not to be compared."""

_FAMILIES = {"stable_diffusion": "stable_diffusion", "flux": "FLUX"}
_UNUSED = (
    "model_id",
    "model_revision",
    "gguf_model_id",
    "gguf_quantizations",
    "gguf_model_file_name_template",
    "lightning_model_id",
    "lightning_versions",
    "lightning_model_file_name_template",
    "virtualenv",
)


@contextmanager
def xinference(card: ModelCard) -> Iterator[int]:
    """It, with this model loaded in single precision; yields its port."""
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        environment = {
            **os.environ,
            "XINFERENCE_HOME": folder,
            "XINFERENCE_AUTH_ADVANCED": "false",
            "HF_HUB_OFFLINE": "1",
            "GOMP_SPINCOUNT": SPIN_COUNT,
        }
        command = [PROGRAM, "--host", HOST, "--port"]
        log = Path(folder) / "server.log"
        with started(command, environment, log, "/v1/models") as (port, _):
            (Path(folder) / "cache" / "v2").mkdir(parents=True, exist_ok=True)
            client = Client(port)
            model = {
                "version": 2,
                "model_family": _FAMILIES[card.family],
                "model_name": card.id,
                "model_uri": card.source,
                "model_ability": ["text2image"],
                "controlnet": [],
                **dict.fromkeys(_UNUSED),
            }
            registration = {"model": json.dumps(model), "persist": False}
            client.ask("POST", "/v1/model_registrations/image", registration)
            launch = {
                "model_uid": card.id,
                "model_name": card.id,
                "model_type": "image",
                "model_engine": "diffusers",
                "torch_dtype": "float32",
            }
            client.ask("POST", "/v1/models", launch)
            client.hang_up()
            yield port


def body(wish: Wish) -> dict[str, Any]:
    """A picture in its words."""
    given = {"num_inference_steps": wish.count, "seed": wish.seed, **constants(wish.card)}
    return {
        "model": wish.card.id,
        "prompt": wish.prompt,
        "n": 1,
        "size": f"{wish.size}x{wish.size}",
        "response_format": "b64_json",
        "kwargs": json.dumps(given),
    }
