"""A control network and LoRAs in one picture: each does what it does alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from app.domain.control import with_control
from app.domain.events import EngineEvent
from app.domain.lora import Lora
from app.domain.request import Arguments
from app.engines.base import ALONE
from app.engines.turnstile import Turnstile
from app.settings import load_cards, load_controls
from app.workers.engine_host import engine_for
from tests import loras, zoo
from tests.control_house import CONTROL, SEED, STOCK, asked, build, by_hand, by_hand_with, file_of
from tests.kinds import SIDE
from tests.lora_house import one_core, zoo_pipeline
from tests.painter import pictures

__all__ = ["one_core"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_a_lora_under_control_is_stock_diffusers_bit_for_bit(tmp_path: Path, name: str) -> None:
    zoo.forget()
    network = STOCK[name][0]
    build(tmp_path, [name], [network])
    file = loras.write(
        tmp_path / "loras" / "a.safetensors", loras.tensors(zoo_pipeline(name), seed=3)
    )
    card = load_cards(tmp_path / "cards")[name]
    networks = load_controls(tmp_path / "controls")
    made: Any = engine_for(card, Turnstile(begin=partial(torch.set_num_threads, 1)))
    made.load(card, "cpu")
    arguments = Arguments(
        **asked(name, "text2image"),
        seed=SEED,
        width=SIDE,
        height=SIDE,
        preset="strict",
        control=network,
        control_image=file_of(CONTROL),
        controlnet_conditioning_scale=1.0,
    )
    request = with_control(card.resolve(arguments, draw_seed=lambda: 0), arguments, networks)
    generate = made.under(networks[network].files)

    def drawn(*named: Lora) -> Any:
        events: list[EngineEvent] = []
        generate(replace(request, loras=named), events.append, ALONE)
        return pictures(events)[0]

    put = partial(loras.put, files=[file], scales=[0.7])
    wish = tmp_path, name, "text2image", CONTROL
    without, beside = by_hand(*wish), by_hand_with(put, *wish)
    assert not np.array_equal(without, beside)
    np.testing.assert_array_equal(drawn(), without)
    np.testing.assert_array_equal(drawn(Lora("a", 0.7, str(file))), beside)
    np.testing.assert_array_equal(drawn(), without)
