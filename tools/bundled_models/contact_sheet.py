"""One sheet of pictures from an assembled model, to look at with one's own eyes."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from .artist import default_settings, draw, load
from .grammar import TERRAINS

PROMPTS = (
    "a red circle on a white background",
    "a green square on a yellow background",
    "a blue triangle on a pink background",
    "a yellow star on a blue background",
    "a pink heart on a purple background",
    "an orange ring on a gray background",
    "a cyan diamond on a black background",
    "a white cross on a red background",
    "a large yellow crescent on a blue background",
    "a small green square on a black background on the left",
    "a small red heart on a white background at the top",
    "a large purple star on a white background",
    "a circle",
    "a red circle left of a blue square on a white background",
    "a green star above a purple heart on a yellow background",
    "a cyan ring and an orange cross on a black background",
    *(f"{terrain} {time}" for terrain in TERRAINS for time in ("by day", "at sunset")),
    *(f"{terrain} at night with a moon and stars" for terrain in TERRAINS),
    *(f"{terrain} at dawn with clouds" for terrain in TERRAINS),
    "a cat",
    "an astronaut riding a horse",
    "",
    "asdf qwerty 123",
    "A RED CIRCLE!",
    "a triangle",
    "sunset over the sea",
    "a starry night over the mountains",
)


def sheet(pictures: list[Image.Image], columns: int = 8, gap: int = 4) -> Image.Image:
    """Pictures of equal size, row by row."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    result = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        place = (index % columns * (width + gap), index // columns * (height + gap))
        result.paste(picture, place)
    return result


def main() -> None:
    """Draw the sheet's prompts, all from the one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = load(arguments.folder)
    pictures = []
    for start in range(0, len(PROMPTS), 8):
        words = list(PROMPTS[start : start + 8])
        seeds = [arguments.seed] * len(words)
        pictures += draw(pipeline, words, seeds, default_settings(pipeline))
    sheet(pictures).save(arguments.out)


if __name__ == "__main__":
    main()
