"""One client, one picture at a time: the server against the raw pipeline.

Both arms draw the same prompts and seeds with the model's own defaults and end with a PNG as base64 in
JSON. The raw arm is timed inside its process, without any transport; the server's from sending the
request to the last byte of the answer. The arms take turns (A, B, B, A); the raw arm compared with
itself gives the noise band. The pixels of the two are compared for every picture.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import time
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

from app.domain import samplers
from app.domain.model_card import ModelCard
from app.settings import load_cards, load_settings
from bench.raw import RawPipeline
from bench.server import BUNDLED, Client, serving
from bench.stats import Row, in_turns, ms, verdict

_PIPELINES = {"stable_diffusion": "StableDiffusionPipeline", "flux": "FluxPipeline"}
_PROMPTS = (
    "a red circle on a blue background",
    "a green triangle",
    "two yellow squares on black",
    "a house under a night sky",
    "a purple star and an orange circle",
)
_SETTLE = 0.05
"""Seconds before each timed picture in which threads of the other arm fall asleep."""


def run(*, quick: bool) -> tuple[list[Row], bool]:
    """The rows, and whether all pixels were equal."""
    rows: list[Row] = []
    equal = True
    cards = load_cards(load_settings().models_dir)
    with serving(BUNDLED) as port:
        for name in ("sketch", "sketch-flux"):
            found, same = _model(cards[name], port, quick=quick)
            rows += found
            equal = equal and same
    return rows, equal


def _model(card: ModelCard, port: int, *, quick: bool) -> tuple[list[Row], bool]:
    rounds = 2 if quick else 6
    with ExitStack() as stack:
        raw = stack.enter_context(_raw(card))
        seeds = count(1)
        differing = 0

        def gateway() -> float:
            nonlocal differing
            wish = _wish(card, next(seeds))
            body = {"model": card.id, "prompt": wish["prompt"], "seed": wish["seed"]}
            client = Client(port)  # a new one: idle connections are closed by the server
            client.ask("GET", "/health")
            time.sleep(_SETTLE)
            start = time.perf_counter()
            answer = client.ask("POST", "/v1/images/generations", body)
            seconds = time.perf_counter() - start
            client.hang_up()
            png = base64.b64decode(json.loads(answer)["data"][0]["b64_json"])
            differing += not np.array_equal(_pixels(png), _pixels(raw.draw(wish)[1]))
            return seconds

        def stock(pipeline: RawPipeline) -> float:
            wish = _wish(card, next(seeds))
            time.sleep(_SETTLE)
            return pipeline.draw(wish)[0]

        for _ in range(2):  # the first picture of each process pays for lazy set-up
            gateway()
        compared = in_turns(gateway, lambda: stock(raw), rounds)
        noise = in_turns(lambda: stock(raw), lambda: stock(raw), rounds)
        what = f"{card.id} {card.defaults.width}x{card.defaults.height}"
        steps = card.defaults.num_inference_steps
        rows = [
            Row("latency", f"{what}, {steps} steps: server", ms(compared.first)),
            Row("latency", f"{what}: raw pipeline, Pillow, json", ms(compared.second)),
            Row("latency", f"{what}: server / raw", verdict(compared, noise), "<= 1.00 (G4)"),
            Row("latency", f"{what}: pictures that differ", str(differing), "0 (G7)"),
        ]
        if not quick:
            busy = stack.enter_context(_raw(card, spin_count=None))
            for _ in range(2):
                stock(busy)
            waits = in_turns(lambda: stock(busy), lambda: stock(raw), rounds // 2)
            figure = f"{statistics.median(waits.first) * 1e3:.2f} ms, ratio {waits.ratio:.3f}"
            rows.append(
                Row("latency", f"{what}: raw, default / the worker's OMP spin count", figure)
            )
        return rows, differing == 0


def _raw(card: ModelCard, spin_count: str | None = "10000") -> RawPipeline:
    scheduler = samplers.BY_FAMILY[card.family][card.defaults.sampler].scheduler
    return RawPipeline(_PIPELINES[card.family], scheduler, card.source, spin_count)


def _wish(card: ModelCard, seed: int) -> dict[str, Any]:
    wish: dict[str, Any] = {
        "prompt": _PROMPTS[seed % len(_PROMPTS)],
        "seed": seed,
        "width": card.defaults.width,
        "height": card.defaults.height,
        "num_inference_steps": card.defaults.num_inference_steps,
        "guidance_scale": card.defaults.guidance_scale,
    }
    if card.family == "flux":
        wish["max_sequence_length"] = card.defaults.max_sequence_length
    return wish


def _pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
