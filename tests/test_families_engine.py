"""What holds for every kind of model inside of the engine: shared steps, cancelling, precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.errors import Cancelled, ModelUnavailable
from app.domain.events import EngineEvent, ImageFinished, StepFinished
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.engines import turnstile
from app.engines.base import ALONE, Engine, Sharing
from app.engines.image_codec import Pixels
from app.engines.turnstile import Turnstile
from app.settings import load_cards
from app.workers.engine_host import engine_for
from tests.kinds import KINDS, MASK, PICTURE, SIDE, card_of, drawn_by_hand, save
from tests.painter import pictures, png

pytestmark = pytest.mark.filterwarnings("ignore")

# Z-Image's denoiser takes lists of pictures and prompts of any length, and is not shared.
SHARED = [name for name, kind in KINDS.items() if kind.pipeline != "ZImagePipeline"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def card(house: Path, name: str, **more: Any) -> ModelCard:
    if not (house / name).exists():
        save(KINDS[name], house / name)
        (house / f"{name}.toml").write_text(card_of(name, KINDS[name], house / name))
    return load_cards(house)[name].model_copy(update=more)


def engine(wanted: ModelCard) -> Engine:
    loaded = engine_for(wanted, Turnstile())
    loaded.load(wanted, "cpu")
    return loaded


def arguments(name: str, prompt: str, seed: int, **more: Any) -> Arguments:
    task = next(iter(KINDS[name].tasks))
    given = {"guidance_scale": 3.0, "true_cfg_scale": 2.0, "negative_prompt": "a hen", **more}
    if task != "text2image":
        given |= {"image": png(np.asarray(PICTURE)), "strength": 1.0}
    if task == "inpaint":
        given["mask_image"] = png(np.asarray(MASK))
    return Arguments(prompt=prompt, seed=seed, width=SIDE, height=SIDE, **given)


@pytest.mark.parametrize("name", SHARED)
def test_requests_share_steps_and_draw_what_they_draw_alone(
    house: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "_PATIENCE", (1.0, 0.5, 0.5))
    wanted = card(house, name)
    loaded = engine(wanted)
    wishes = [
        wanted.resolve(
            arguments(name, prompt, seed, num_inference_steps=3 + seed), draw_seed=lambda: 0
        )
        for seed, prompt in enumerate(["a red fox", "a big hen", "an old ox"])
    ]

    def drawn(index: int, sharing: Sharing) -> tuple[Pixels, list[int]]:
        events: list[EngineEvent] = []
        loaded.generate(wishes[index], events.append, sharing)
        (picture,) = pictures(events)
        return picture, [event.batch for event in events if isinstance(event, StepFinished)]

    alone = [drawn(index, ALONE)[0] for index in range(3)]
    together: dict[int, tuple[Pixels, list[int]]] = {}

    def draw(index: int) -> None:
        together[index] = drawn(index, Sharing((0, float(index)), 8))

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, one in enumerate(alone):
        apart = np.abs(one.astype(int) - together[index][0].astype(int))
        assert apart.max() <= 1, index
    assert max(batch for _, batches in together.values() for batch in batches) > 1


@pytest.mark.parametrize("name", ["z-image", "pixart", "kontext", "fill"])
def test_a_step_is_where_a_picture_is_cancelled(house: Path, name: str) -> None:
    wanted = card(house, name)
    told: list[EngineEvent] = []

    def report(event: EngineEvent) -> None:
        told.append(event)
        if isinstance(event, StepFinished) and event.step == 2:
            raise Cancelled("Enough.")

    request = wanted.resolve(
        arguments(name, "a red fox", 1, num_inference_steps=6), draw_seed=lambda: 0
    )
    with pytest.raises(Cancelled):
        engine(wanted).generate(request, report)
    assert [event.step for event in told if isinstance(event, StepFinished)] == [1, 2]
    assert not [event for event in told if isinstance(event, ImageFinished)]


@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint"])
def test_a_half_precision_vae_is_cast_for_one_picture_only(house: Path, task: str) -> None:
    wanted = card(house, "sdxl", dtype="float16")
    loaded: Any = engine(wanted)
    vae = loaded._loaded.vae
    vae.register_to_config(force_upcast=True)
    more: dict[str, Any] = {} if task == "text2image" else {"image": png(np.asarray(PICTURE))}
    if task == "inpaint":
        more["mask_image"] = png(np.asarray(MASK))
    kept = {"text2image": 3}.get(task, 5)
    wish = Arguments(
        prompt="a red fox",
        seed=7,
        width=SIDE,
        height=SIDE,
        strength=0.5,
        num_inference_steps=kept,
        guidance_scale=4.0,
        negative_prompt="a blue hen",
        **more,
    )
    events: list[EngineEvent] = []
    loaded.generate(wanted.resolve(wish, draw_seed=lambda: 0), events.append)
    assert {weight.dtype for weight in vae.parameters()} == {torch.float16}
    stock = drawn_by_hand(house, "sdxl", task, dtype=torch.float16, force_upcast=True)
    assert np.array_equal(pictures(events)[0], stock)


@pytest.mark.parametrize("name", ["z-image", "klein", "flux-2", "qwen"])
def test_a_prompt_is_remembered_without_the_layers_that_nobody_looks_at(
    house: Path, name: str
) -> None:
    wanted = card(house, name)
    loaded: Any = engine(wanted)
    read: list[int] = []
    encoder = loaded._loaded.text_encoder
    encoder.register_forward_hook(lambda *_: read.append(1))
    request = wanted.resolve(
        arguments(name, "a red fox", 1, num_inference_steps=1), draw_seed=lambda: 0
    )
    drawn: list[EngineEvent] = []
    for _ in range(2):
        loaded.generate(request, drawn.append)
    first, second = pictures(drawn)
    assert np.array_equal(first, second)
    assert len(read) == (1 if name in {"klein", "flux-2"} else 2)  # with and without guidance
    kept = [output for output, _ in loaded._prompts._kept.values()]
    assert all(output.get("past_key_values") is None for output in kept)
    layers = [state for output in kept for state in output.hidden_states if state is not None]
    assert len(layers) == len(kept) * len(loaded._recipe.layers)


def test_a_card_cannot_override_what_no_sampler_knows(house: Path) -> None:
    wanted = card(house, "sdxl", scheduler={"timestep_spacing": "trailing", "spaceing": 1})
    with pytest.raises(ModelUnavailable) as caught:
        engine(wanted)
    assert "spaceing" in caught.value.message
    assert "timestep" not in caught.value.message
