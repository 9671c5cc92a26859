"""From pixels to the answer's bytes: the server's way against Pillow and the standard library.

CPU seconds of this thread, so that a busy machine matters little. The picture is a smooth one with
grain, the hard case for a PNG encoder that looks for repetition. Both files are decoded and compared.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pybase64
from PIL import Image

from app.engines.image_codec import Pixels, encode_png
from bench.stats import Row, in_turns, ms, verdict


def run(*, quick: bool) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    equal = True
    for side in (256, 1024):
        pixels = _picture(side)
        ours, theirs = encode_png(pixels, {"prompt": "a hill"}), _pillow(pixels)
        equal = equal and all(np.array_equal(_decoded(png), pixels) for png in (ours, theirs))
        rounds = (5 if quick else 10) * (4 if side == 256 else 1)
        compared = in_turns(_timed(_fast, pixels), _timed(naive, pixels), rounds)
        noise = in_turns(_timed(_fast, pixels), _timed(_fast, pixels), rounds)
        what = f"{side}x{side} PNG + base64 + JSON"
        size = len(ours) / len(theirs)
        rows += [
            Row("codec", f"{what}: server", f"{ms(compared.first)} CPU"),
            Row("codec", f"{what}: Pillow, stdlib", f"{ms(compared.second)} CPU"),
            Row("codec", f"{what}: gain", f"{1 / compared.ratio:.1f}x", ">= 15x (G2)"),
            Row("codec", f"{what}: server / Pillow", verdict(compared, noise)),
            Row("codec", f"{side}x{side}: bytes of the file, server / Pillow", f"{size:.2f}"),
        ]
    return rows, equal


def _fast(pixels: Pixels) -> bytes:
    png = encode_png(pixels, {"prompt": "a hill"})
    image = msgspec.Raw(b'"' + pybase64.b64encode(png) + b'"')
    return msgspec.json.encode({"created": 0, "data": [{"b64_json": image}]})


def naive(pixels: Pixels) -> bytes:
    png = base64.b64encode(_pillow(pixels)).decode("ascii")
    return json.dumps({"created": 0, "data": [{"b64_json": png}]}).encode()


def _timed(way: Callable[[Pixels], bytes], pixels: Pixels) -> Callable[[], float]:
    def once() -> float:
        start = time.thread_time()
        way(pixels)
        return time.thread_time() - start

    return once


def _pillow(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _decoded(png: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _picture(side: int) -> Pixels:
    chance = np.random.default_rng(0)
    across, down = np.meshgrid(np.linspace(0, 3, side), np.linspace(0, 2, side))
    waves = np.stack([np.sin(across + down), np.cos(across * down), np.sin(down * 2)], axis=-1)
    grain = chance.normal(0, 4, waves.shape)
    return np.clip(waves * 100 + 128 + grain, 0, 255).astype(np.uint8)
