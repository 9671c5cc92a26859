"""The judge over all that it judges the bundled models by: 200 prompts, and the other prompts' control.

The figures and their goals are those of docs/bundled-models.md; `--quick` judges 40 of the prompts.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bench.stats import Row
from tools.bundled_models.artist import default_settings, load
from tools.bundled_models.evaluate import ROWS, draw_all, seconds_per_picture
from tools.bundled_models.judge import look, shares
from tools.bundled_models.prompts import judged_prompts, verdicts

_FOLDER = Path(__file__).parent.parent / "app" / "bundled_models"
_GOALS = {
    "sketch": {
        "background": 97,
        "colour": 97,
        "shape": 85,
        "place": 95,
        "size": 95,
        "pair_colours": 75,
    },
    "sketch-flux": {
        "background": 95,
        "colour": 95,
        "shape": 70,
        "place": 90,
        "size": 90,
        "pair_colours": 60,
    },
}
_SECONDS = 0.8


def run(*, quick: bool) -> tuple[list[Row], bool]:
    prompts = judged_prompts(40 if quick else 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    rows: list[Row] = []
    for model, goals in _GOALS.items():
        pipeline = load(_FOLDER / model)
        settings = default_settings(pipeline)
        views = [look(picture) for picture in draw_all(pipeline, prompts, settings)]
        rights = shares(verdicts(views, prompts))
        others = shares(verdicts(views, prompts, shift=3))
        for aspect, (share, number) in rights.items():
            figure = (
                f"{100 * share:.0f} % of {number}; by other prompts {100 * others[aspect][0]:.0f} %"
            )
            goal = f">= {goals[aspect]} %" if aspect in goals else ""
            rows.append(Row("bundled_models", f"{model}, {ROWS[aspect]}", figure, goal))
        seconds = seconds_per_picture(pipeline, settings)
        rows.append(
            Row("bundled_models", f"{model}, 256x256", f"{seconds:.2f} s", f"<= {_SECONDS} s")
        )
    torch.set_num_threads(threads)
    return rows, True
