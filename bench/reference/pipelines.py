"""What both reference servers share: stock pipelines, loaded as diffusers' own examples do."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from typing import Any


class Models:
    """At most `budget` loaded pipelines; the one used longest ago makes room."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = json.loads(os.environ["REFERENCE"])
        self._budget = int(os.environ["REFERENCE_BUDGET"])
        self._held: dict[str, Any] = {}
        for name in list(self._known)[: self._budget]:
            self._load(name)

    def draw(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """The answers to requests that differ in prompt and seed only, from one pipeline call."""
        import torch

        first = bodies[0]
        name = first["model"]
        if name in self._held:
            self._held[name] = self._held.pop(name)
        else:
            self._load(name)
        width, height = map(int, first["size"].split("x"))
        images = self._held[name](
            prompt=[body["prompt"] for body in bodies],
            generator=[torch.Generator("cpu").manual_seed(body["seed"]) for body in bodies],
            width=width,
            height=height,
            num_inference_steps=first["steps"],
            **self._known[name]["constants"],
        ).images
        return [_answer(image) for image in images]

    def _load(self, name: str) -> None:
        import diffusers
        import torch

        while len(self._held) >= self._budget:
            del self._held[next(iter(self._held))]
        told = self._known[name]
        pipeline = getattr(diffusers, told["pipeline"]).from_pretrained(
            told["folder"], dtype=torch.float32, local_files_only=True
        )
        kind = getattr(diffusers, told["scheduler"])
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        self._held[name] = pipeline


def _answer(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    return json.dumps({"created": 0, "data": [{"b64_json": png}]}).encode()
