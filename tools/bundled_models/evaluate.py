"""Judge assembled models on 200 prompts and print the table, as Markdown, with its controls."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .artist import Settings, default_settings, draw, load
from .drawing import paint
from .grammar import is_held_out
from .judge import look, shares
from .prompts import Prompt, judged_prompts, verdicts

ROWS = {
    "background": "background colour right",
    "colour": "object colour right",
    "shape": "shape right (chance 11 %)",
    "place": "place right",
    "size": "size right",
    "pair_colours": "two objects, each its own colour",
    "pair_shapes": "two objects, each its own shape",
}


def draw_all(
    pipeline: DiffusionPipeline, prompts: list[Prompt], settings: Settings, batch: int = 10
) -> list[Image.Image]:
    """A picture of every prompt, each with its own seed."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        words, seeds = [one.words for one in part], [one.seed for one in part]
        pictures += draw(pipeline, words, seeds, settings)
    return pictures


def ground_truth(prompts: list[Prompt]) -> list[Image.Image]:
    """The prompts' pictures as the generator draws them."""
    rng = np.random.default_rng(5)
    return [Image.fromarray(paint(prompt.spec, 256, 256, rng)) for prompt in prompts]


def seconds_per_picture(pipeline: DiffusionPipeline, settings: Settings, runs: int = 5) -> float:
    """The fastest of several single pictures."""
    times = []
    for seed in range(runs):
        began = time.perf_counter()
        draw(pipeline, ["a red circle on a blue background"], [seed], settings)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Print one column per model and two for the controls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="assembled models")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    parser.add_argument("--guidance", type=float, help="instead of the model's default")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = judged_prompts(arguments.count)
    columns: dict[str, list[str]] = {}
    for folder in arguments.folders:
        pipeline = load(folder)
        settings = default_settings(pipeline)
        settings = replace(
            settings,
            steps=arguments.steps or settings.steps,
            guidance=arguments.guidance or settings.guidance,
        )
        views = [look(picture) for picture in draw_all(pipeline, prompts, settings)]
        rights = shares(verdicts(views, prompts))
        others = shares(verdicts(views, prompts, shift=3))
        columns[folder.name] = [f"{100 * share:.0f} %" for share, _ in rights.values()]
        columns[f"{folder.name}, other prompts"] = [f"{100 * s:.0f} %" for s, _ in others.values()]
        columns[folder.name].append(f"{seconds_per_picture(pipeline, settings):.2f}")
        columns[f"{folder.name}, other prompts"].append("")
    views = [look(picture) for picture in ground_truth(prompts)]
    truth = shares(verdicts(views, prompts))
    columns["ground truth"] = [f"{100 * share:.0f} %" for share, _ in truth.values()] + [""]
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    labels = [f"{ROWS[aspect]} (of {number})" for aspect, (_, number) in truth.items()]
    labels.append(f"seconds for 256x256, {arguments.threads} threads")
    for index, label in enumerate(labels):
        print(f"| {label} | " + " | ".join(column[index] for column in columns.values()) + " |")
    unseen = sum(is_held_out(prompt.spec) for prompt in prompts)
    print(f"\n{len(prompts)} prompts, {unseen} of combinations that were never trained on.")


if __name__ == "__main__":
    main()
