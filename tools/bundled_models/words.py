"""Teach a model's text encoder what captions say, before or between its trainings on pictures.

A picture's loss is mostly about the background: left to it alone, shapes made up 2 % of the variance
of the gist that a denoiser read of captions, and it learns to draw them last. A few minutes of naming
every attribute from the gist make all of them plain.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .captions import caption
from .flux_model import FluxModel
from .grammar import (
    PLACES,
    RELATIONS,
    TERRAINS,
    TIMES,
    Landscape,
    Specification,
    sample_landscape,
    sample_pair,
    sample_single,
)
from .palette import COLOURS
from .shapes import SHAPES
from .sketch_model import SketchModel

CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "shape": tuple(SHAPES),
    "colour": (None, *COLOURS),
    "size": (None, "small", "large"),
    "place": (None, *PLACES),
    "background": (None, *COLOURS),
    "second shape": (None, *SHAPES),
    "second colour": (None, *COLOURS),
    "relation": (None, *RELATIONS),
    "terrain": TERRAINS,
    "time": TIMES,
    "moon": (False, True),
    "clouds": (False, True),
    "stars": (False, True),
}
MODELS = {"sketch": SketchModel, "sketch-flux": FluxModel}
UNASKED = -100
"""The label of an attribute that the picture's kind does not have."""


def labels(spec: Specification) -> list[int]:
    """For every attribute of CHOICES, which of its values the specification has."""
    if isinstance(spec, Landscape):
        said = {
            name: getattr(spec, name) for name in ("terrain", "time", "moon", "clouds", "stars")
        }
    else:
        first, second = spec.first, spec.second
        said = {name: getattr(first, name) for name in ("shape", "colour", "size", "place")}
        said |= {
            "background": spec.background,
            "second shape": second.shape if second else None,
            "second colour": second.colour if second else None,
            "relation": spec.relation,
        }
    return [
        values.index(said[name]) if name in said else UNASKED for name, values in CHOICES.items()
    ]


def captioned(count: int, rng: np.random.Generator) -> tuple[list[str], torch.Tensor]:
    """Captions and their labels (count, attributes)."""
    samplers = (sample_single, sample_single, sample_pair, sample_landscape)
    specs = [samplers[index % 4](rng) for index in range(count)]
    return [caption(spec, rng) for spec in specs], torch.tensor([labels(spec) for spec in specs])


class Reading(nn.Module):
    """Names the attributes from gists (n, width), with directions of unit length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.directions = nn.ParameterList(
            [nn.Parameter(torch.randn(len(values), width)) for values in CHOICES.values()]
        )

    def forward(self, gist: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The loss, and the share of shapes read rightly."""
        losses, right = [], 0.0
        for index, directions in enumerate(self.directions):
            answers = gist @ F.normalize(directions, dim=1).T
            losses.append(F.cross_entropy(answers, wanted[:, index], ignore_index=UNASKED))
            if index == 0:
                asked = wanted[:, 0] != UNASKED
                right = (answers.argmax(1) == wanted[:, 0])[asked].float().mean().item()
        return torch.stack(losses).mean(), right


def teach(
    read: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]],
    weights: list[nn.Parameter],
    steps: int,
    anchor: float,
    seed: int = 0,
) -> None:
    """Train weights so that all attributes can be named from the gist.

    `read` gives the gist and all hidden states of captions. Both are held to what they were by
    `anchor`, so that a denoiser trained on them keeps what it knows.
    """
    first = [weight.detach().clone() for weight in weights]
    rng = np.random.default_rng([4, seed])
    torch.manual_seed(seed)
    reading = Reading(read(["a circle"])[0].shape[1])
    rate = 1e-3
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": rate}, {"params": reading.parameters(), "lr": 10 * rate}],
        weight_decay=0.0,
    )
    for step in range(steps):
        words, wanted = captioned(96, rng)
        with torch.no_grad():
            now = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, first)
            old_gist, old_hidden = read(words)
            torch._foreach_copy_(weights, now)
        gist, hidden = read(words)
        loss, right = reading(gist, wanted)
        if anchor:
            moved = (gist - old_gist).square().sum(1).mean()
            moved = moved + (hidden - old_hidden).square().sum(2).mean()
            loss = loss + anchor * moved
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group, base in zip(optimizer.param_groups, (rate, 10 * rate), strict=True):
            group["lr"] = base * min(1.0, (step + 1) / 20, 3 * (1 - step / steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step + 1 == steps:
            print(f"{step} loss {loss.item():.3f}, shapes read {100 * right:.0f} %", flush=True)


def main() -> None:
    """Teach the words of a training's checkpoint; the raw weights become their averages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="the folder that the training began with")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--anchor", type=float, default=0.0005)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    model = MODELS[arguments.model](arguments.tokenizers, arguments.init)
    weights = list(model.text_encoder.parameters())

    def read(words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = model.tokenizer(
            words, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        output = model.text_encoder(ids)
        return output.pooler_output, output.last_hidden_state

    model.load_state_dict(state["averages"], strict=False)
    teach(read, weights, arguments.steps, arguments.anchor)
    averages = dict(model.named_parameters())
    state["averages"] = {name: averages[name].detach() for name in state["averages"]}
    state["model"] |= state["averages"]
    partial = arguments.checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(arguments.checkpoint)


if __name__ == "__main__":
    main()
