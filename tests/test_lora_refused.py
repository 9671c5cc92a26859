"""LoRA files that do not fit a model: refused when they are loaded, and nobody notices.

Promised: such a file changes nothing for anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.domain.errors import InvalidRequest
from app.domain.lora import Lora
from tests import loras
from tests.lora_house import (
    House,
    asked,
    drawn,
    engine,
    house,
    one_core,
    with_loras,
    zoo_pipeline,
)

__all__ = ["house", "one_core"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore")


def wrong_shape(file: Path, house: House) -> None:
    loras.write(file, {k: torch.ones(3, 5) for k in loras.tensors(zoo_pipeline("sd"))})


def of_another_model(file: Path, house: House) -> None:
    file.write_bytes(Path(house.file("sdxl", "a")).read_bytes())


def of_another_family(file: Path, house: House) -> None:
    file.write_bytes(Path(house.file("flux", "a")).read_bytes())


def for_nothing(file: Path, house: House) -> None:
    loras.write(file, {"other.thing.lora_A.weight": torch.ones(2, 2)})


def cut_short(file: Path, house: House) -> None:
    file.write_bytes(Path(house.file("sd", "a")).read_bytes()[:-7])


def with_a_weight(file: Path, house: House) -> None:
    found = loras.tensors(zoo_pipeline("sd"))
    loras.write(file, {**found, "unet.conv_in.bias": torch.ones(4)})


def that_begins_with_the_models(file: Path, house: House) -> None:
    told = loras.settings(r=2, lora_alpha=2, init_lora_weights="pissa", target_modules=["to_q"])
    loras.write(file, loras.tensors(zoo_pipeline("sd"), text=False), **told)


def gone(file: Path, house: House) -> None:
    file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "make",
    [
        wrong_shape,
        of_another_model,
        of_another_family,
        for_nothing,
        cut_short,
        with_a_weight,
        that_begins_with_the_models,
        gone,
    ],
)
def test_what_does_not_fit_changes_nothing(
    house: House, tmp_path: Path, make: Callable[[Path, House], None]
) -> None:
    made = engine(house, "sd")
    plain, _ = drawn(made, asked(house, "sd", []))
    with_one, _ = drawn(made, asked(house, "sd", [("a", 1.0)]))
    before = made.memory
    file = tmp_path / "bad.safetensors"
    make(file, house)
    good = Lora("b", 1.0, house.file("sd", "b"))
    bad = with_loras(asked(house, "sd", []), (good, Lora("bad", 1.0, str(file))))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"LoRA bad ") as refused:
            drawn(made, bad)
        assert refused.value.param == "loras"
        assert str(tmp_path) not in refused.value.message
    assert made.memory == before
    assert (drawn(made, asked(house, "sd", []))[0] == plain).all()
    assert (drawn(made, asked(house, "sd", [("a", 1.0)]))[0] == with_one).all()
