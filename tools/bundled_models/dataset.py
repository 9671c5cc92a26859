"""Rendered pictures as latents on disk: made once, trained on from memory maps.

A shard is one size of picture: `<index>-<height>x<width>.npy` holds the encoder's means as float16
of shape (pictures, 4, height / 8, width / 8), and the `.json` beside it the specifications.
Captions are not stored: every epoch says the same picture in other words.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from .drawing import paint
from .grammar import Drawing, Landscape, Specification, Thing, sample_training

SIZES: tuple[tuple[int, int], ...] = (
    *(((256, 256),) * 7),
    (384, 256),
    *(((256, 256),) * 3),
    (256, 384),
    *(((256, 256),) * 2),
    (384, 384),
    (320, 256),
    (256, 256),
    (512, 512),
    (256, 320),
    (512, 384),
    (256, 256),
    (384, 512),
)
"""(height, width) in pixels of one shard after another, again and again."""


def to_json(spec: Specification) -> dict[str, Any]:
    """A specification as JSON's types."""
    return asdict(spec)


def from_json(fields: dict[str, Any]) -> Specification:
    """The specification that `to_json` wrote."""
    if "terrain" in fields:
        return Landscape(**fields)
    second = fields["second"]
    return Drawing(
        Thing(**fields["first"]),
        fields["background"],
        Thing(**second) if second else None,
        fields["relation"],
    )


def render(index: int, pictures: int) -> tuple[list[Specification], NDArray[np.uint8]]:
    """The index-th shard before encoding: specifications, and (n, height, width, 3) sRGB.

    `pictures` counts at 256 pixels squared; a shard of larger pictures holds fewer.
    """
    height, width = SIZES[index % len(SIZES)]
    count = pictures * 256 * 256 // (height * width)
    rng = np.random.default_rng([1, index])
    specs = [sample_training(rng) for _ in range(count)]
    return specs, np.stack([paint(spec, height, width, rng) for spec in specs])


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The encoder's means, not scaled, of (n, height, width, 3) sRGB."""
    means = []
    for part in np.array_split(pictures, max(1, len(pictures) // 8)):
        pixels = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        means.append(vae.encode(pixels).latent_dist.mean.half().numpy())
    return np.concatenate(means)


def shard_paths(folder: Path) -> Iterator[Path]:
    """The finished shards' arrays in order; one is finished once its JSON lies beside it."""
    for path in sorted(folder.glob("*.npy")):
        if path.with_suffix(".json").exists():
            yield path


def write_shard(folder: Path, index: int, pictures: int, vae: AutoencoderKL) -> None:
    """Render, encode and store one shard, unless it is there already."""
    height, width = SIZES[index % len(SIZES)]
    path = folder / f"{index:04d}-{height}x{width}.npy"
    if path.with_suffix(".json").exists():
        return
    specs, drawn = render(index, pictures)
    np.save(path, encode(vae, drawn))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([to_json(spec) for spec in specs]))
    partial.replace(path.with_suffix(".json"))


def main() -> None:
    """Write every stride-th shard from the first on; several processes share the work so."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the AutoencoderKL")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=120)
    parser.add_argument("--pictures", type=int, default=400, help="per shard, at 256x256")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(arguments.vae, dtype=torch.float32)
    for index in range(arguments.first, arguments.shards, arguments.stride):
        write_shard(arguments.out, index, arguments.pictures, vae)


if __name__ == "__main__":
    main()
