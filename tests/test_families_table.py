"""What the domain says of each pipeline is what diffusers does and what the engine can."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from app.domain.pipelines import PIPELINES, steps_kept
from app.engines import diffusion_transformer, flux, samplers, stable_diffusion
from app.engines.recipe import Recipe

RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "stable_diffusion": stable_diffusion.RECIPES,
    "flux": flux.RECIPES,
    "diffusion_transformer": diffusion_transformer.RECIPES,
}
KNOWN = {name: recipe for family in RECIPES.values() for name, recipe in family.items()}
CLASSES = [
    (name, task, kind) for name, recipe in KNOWN.items() for task, kind in recipe.classes.items()
]


def test_both_tables_have_the_same_pipelines_and_tasks() -> None:
    for family, recipes in RECIPES.items():
        assert set(recipes) == {name for name, one in PIPELINES.items() if one.family == family}
    for name, recipe in KNOWN.items():
        assert tuple(recipe.classes) == tuple(PIPELINES[name].tasks)
        assert next(iter(recipe.classes.values())).__name__ == name


@pytest.mark.parametrize(("name", "task", "kind"), CLASSES)
def test_as_many_steps_run_as_diffusers_runs(name: str, task: Any, kind: Any) -> None:
    if not hasattr(kind, "get_timesteps"):
        assert PIPELINES[name].tasks[task] == "all"
        assert "strength" not in inspect.signature(kind.__call__).parameters
        return
    view = object.__new__(kind)
    for steps in range(1, 41):
        view.__dict__["scheduler"] = SimpleNamespace(timesteps=list(range(steps)), order=1)
        for percent in range(101):
            strength = percent / 100
            timesteps, _ = kind.get_timesteps(view, steps, strength, "cpu")
            assert len(timesteps) == steps_kept(name, task, steps, strength), (steps, strength)


@pytest.mark.parametrize(("name", "task", "kind"), CLASSES)
def test_a_negative_prompt_is_told_where_the_pipeline_takes_one(
    name: str, task: str, kind: Any
) -> None:
    parameters = inspect.signature(kind.__call__).parameters
    known = PIPELINES[name]
    assert bool(known.negative) == ("negative_prompt" in parameters)
    assert ("true_cfg_scale" in parameters) == (known.negative == "true_cfg_scale")
    assert KNOWN[name].has_step_end == ("callback_on_step_end" in parameters)


@pytest.mark.parametrize("name", KNOWN)
def test_every_sampler_is_a_class_of_diffusers(name: str) -> None:
    for sampler in PIPELINES[name].samplers.values():
        kind = samplers._class(sampler.scheduler)
        assert issubclass(kind, getattr(diffusers, sampler.scheduler))
        assert set(sampler.config) <= set(inspect.signature(kind.__init__).parameters)
