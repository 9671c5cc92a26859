"""LoRAs and a control network in one picture, over HTTP: what stock diffusers draws with both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from tests import loras, zoo
from tests.control_house import CONTROL, SEED, STOCK, asked, build, by_hand, encoded
from tests.gateway import Gateway, running_gateway
from tests.kinds import KINDS, PROMPT, SIDE
from tests.pictures import from_base64

pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = ("sd", "sdxl", "flux")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo.forget()
    return tmp_path_factory.mktemp("both")


@pytest.fixture(scope="module")
def gateway(house: Path) -> Iterator[Gateway]:
    environment = build(house, MODELS, [STOCK[name][0] for name in MODELS])
    for name in MODELS:
        built = getattr(diffusers, KINDS[name].pipeline)(**KINDS[name].parts())
        loras.write(house / "data" / "loras" / f"{name}.safetensors", loras.tensors(built))
    with running_gateway(house / "data", environment) as started:
        yield started


@pytest.mark.parametrize("name", MODELS)
def test_both_act(gateway: Gateway, house: Path, name: str) -> None:
    control = {"model": STOCK[name][0], "image": encoded(CONTROL)}
    named = [{"name": name, "scale": 0.7}]
    file = house / "data" / "loras" / f"{name}.safetensors"

    def draw(**more: Any) -> Any:
        body = {"prompt": PROMPT, "model": name, "seed": SEED, "size": f"{SIDE}x{SIDE}"}
        with gateway.client() as client:
            answer = client.post(
                "/v1/images/generations",
                json={**body, "preset": "strict", **asked(name, "text2image"), **more},
            )
        assert answer.status_code == 200, answer.text
        return from_base64(answer.json()["data"][0]["b64_json"]).astype(int)

    plain, alone, steered = draw(), draw(loras=named), draw(control=control)
    both = draw(loras=named, control=control)
    put = partial(loras.put, files=[file], scales=[0.7])
    stock = by_hand(house, name, "text2image", CONTROL, prepare=put)
    assert np.abs(both - stock).max() <= 1  # another process
    for other in (plain, alone, steered):
        assert not (both == other).all()
    assert (draw(control=control) == steered).all()
    assert (draw() == plain).all()
