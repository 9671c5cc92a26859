"""The prompts that the models are judged by; most of them are of combinations never trained on."""

from dataclasses import dataclass

import numpy as np

from .captions import caption
from .grammar import Drawing, is_held_out, sample_pair, sample_single
from .judge import Verdict, View, compare


@dataclass(frozen=True)
class Prompt:
    """A sentence, what it means, and the seed to draw it with."""

    words: str
    spec: Drawing
    seed: int


def judged_prompts(count: int = 200, seed: int = 11, held_out: float = 0.6) -> list[Prompt]:
    """`count` prompts, two thirds of single objects; `held_out` is the share never trained on."""
    rng = np.random.default_rng([2, seed])
    prompts = []
    for index in range(count):
        sample = sample_pair if index % 3 == 2 else sample_single
        wanted = index % 10 < round(10 * held_out)
        while True:
            spec = sample(rng)
            if is_held_out(spec) == wanted:
                break
        prompts.append(Prompt(caption(spec, rng), spec, seed=1000 + index))
    return prompts


def verdicts(views: list[View], prompts: list[Prompt], shift: int = 0) -> list[Verdict]:
    """Judge what was seen against each prompt, or against the one `shift` places on."""
    count = len(prompts)
    return [compare(views[i], prompts[(i + shift) % count].spec) for i in range(count)]
