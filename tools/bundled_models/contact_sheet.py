"""One sheet of pictures to look at with one's own eyes: from a folder, or from a running gateway.

python -m tools.bundled_models.contact_sheet app/bundled_models/sketch --out sheet.png
python -m tools.bundled_models.contact_sheet --url http://127.0.0.1:5199 --out sheet.png
"""

import argparse
import base64
import io
import json
import urllib.request
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
"""What a model is looked at with: all that it knows, and some that it does not."""

SHOWN = (
    "a yellow star on a blue background",
    "a red heart on a white background",
    "mountains at sunset",
    "the sea at night with a moon and stars",
    "a large orange ring on a purple background",
    "a white cross on a red background",
    "hills by day with clouds",
    "a desert at sunset",
    "a cyan diamond on a black background",
    "a red circle left of a blue square on a white background",
    "a forest at dawn",
    "snowy mountains by day",
    "a large yellow crescent on a blue background",
    "a green triangle on a pink background",
    "the sea at sunset",
    "mountains at night with a moon",
)
"""What the README shows."""


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


def drawn_by_folder(folder: Path, seed: int) -> list[Image.Image]:
    """PROMPTS, all from the one seed, by an assembled model."""
    pipeline = load(folder)
    pictures = []
    for start in range(0, len(PROMPTS), 8):
        words = list(PROMPTS[start : start + 8])
        pictures += draw(pipeline, words, [seed] * len(words), default_settings(pipeline))
    return pictures


def drawn_by_gateway(url: str, model: str, seed: int) -> list[Image.Image]:
    """SHOWN, as anyone gets them: one request each to the OpenAI door, defaults left alone."""
    pictures = []
    for words in SHOWN:
        body = {"model": model, "prompt": words, "seed": seed, "response_format": "b64_json"}
        request = urllib.request.Request(
            f"{url}/v1/images/generations",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            encoded = json.load(answer)["data"][0]["b64_json"]
        pictures.append(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
    return pictures


def main() -> None:
    """Draw the sheet, all pictures from the one seed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="an assembled model")
    parser.add_argument("--url", help="a running gateway instead")
    parser.add_argument("--model", default="sketch", help="the gateway's model")
    parser.add_argument("--side", type=int, default=192, help="pixels of one of its pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.url:
        pictures = drawn_by_gateway(arguments.url, arguments.model, arguments.seed)
        side = (arguments.side, arguments.side)
        pictures = [picture.resize(side, Image.Resampling.LANCZOS) for picture in pictures]
        sheet(pictures, columns=4).save(arguments.out, optimize=True)
    elif arguments.folder:
        sheet(drawn_by_folder(arguments.folder, arguments.seed)).save(arguments.out)
    else:
        parser.error("either a folder or --url")


if __name__ == "__main__":
    main()
