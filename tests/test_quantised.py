"""Models whose large transformers are held in eight bits a weight: drawn, carried and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import T5Config, T5EncoderModel

from app.domain import memory_plan
from app.domain.errors import InvalidRequest, ModelUnavailable, OutOfMemory
from app.domain.lora import Lora
from app.domain.memory_plan import BYTES, NO_LIMIT, Plan, Room
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.engines import fitting
from app.engines.base import ALONE
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.fitting import bytes_needed, plan_for, plans_for, quantised_parts
from app.engines.host_copy import Carried, HostCopy, carrier_of, memory_of
from app.engines.image_codec import Pixels
from app.engines.turnstile import Turnstile
from app.engines.weight_bytes import weight_bytes, weight_counts
from app.settings import load_cards
from app.workers.engine_host import engine_for
from bench.published import FLUX_SCHNELL, Z_IMAGE
from tests import zoo
from tests.kinds import KINDS, SIDE, card_of, save
from tests.painter import pictures

pytestmark = pytest.mark.filterwarnings("ignore")

GB = 10**9
LARGE = {
    "transformer": 11_891_178_560,
    "text_encoder": 123_060_480,
    "text_encoder_2": 4_762_310_656,
    "vae": 83_819_683,
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo.forget()
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "_LARGE", 10_000)
    monkeypatch.setattr(fitting, "_SMALL", 0)


def card(house: Path, name: str, **given: Any) -> ModelCard:
    if not (house / name).exists():
        save(KINDS[name], house / name)
        (house / f"{name}.toml").write_text(card_of(name, KINDS[name], house / name))
    return load_cards(house)[name].model_copy(update={"quantization": "int8", **given})


def absent(**given: Any) -> ModelCard:
    """A card of a model of Flux.1's size, of which there is no file."""
    return ModelCard.model_validate(
        {
            "id": "large",
            "family": "flux",
            "source": "/nowhere",
            "parameters": LARGE,
            "defaults": {"sampler": "euler", "width": 1024, "height": 1024},
            **given,
        }
    )


def loaded(wanted: ModelCard, room: Room = NO_LIMIT) -> DiffusersEngine:
    engine = engine_for(wanted, Turnstile(overlap=False), room)
    assert isinstance(engine, DiffusersEngine)
    engine.load(wanted, "cpu")
    return engine


def draw(engine: DiffusersEngine, wanted: ModelCard, **given: Any) -> Pixels:
    asked: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 3, **given}
    request = wanted.resolve(
        Arguments(prompt="a red fox", seed=1, width=SIDE, height=SIDE, **asked),
        draw_seed=lambda: 0,
    )
    events: list[Any] = []
    engine.generate(request, events.append, ALONE)
    (picture,) = pictures(events)
    return picture


def quantised(module: torch.nn.Module) -> bool:
    return any(is_traceable_wrapper_subclass(weight) for weight in module.parameters())


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("name", ["flux", "sd3", "z-image"])
def test_it_draws_nearly_the_same_with_less(house: Path, name: str) -> None:
    wanted = card(house, name)
    whole = loaded(wanted.model_copy(update={"quantization": "auto"}))
    engine = loaded(wanted)
    parts = engine._loaded.components
    small = quantised_parts(wanted, plan_for(wanted, "cpu", NO_LIMIT))
    assert "transformer" in small
    assert {part for part, one in parts.items() if _has_weights(one) and quantised(one)} == small
    assert engine.memory < 0.8 * whole.memory
    assert engine.memory == memory_of(one for one in parts.values() if _has_weights(one))
    plain, close = draw(whole, wanted), draw(engine, wanted)
    off = np.abs(plain.astype(float) - close)
    assert 0 < off.mean() < 4
    # It waits in host memory, and comes back as it was.
    engine.park()
    engine.unpark()
    assert (draw(engine, wanted) == close).all()
    engine.unload()


def _has_weights(part: Any) -> bool:
    return isinstance(part, torch.nn.Module)


@pytest.mark.usefixtures("_all_are_large")
def test_its_parts_can_take_turns(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = card(house, "flux")
    whole = draw(loaded(wanted), wanted)
    way = Plan("model_offload", "int8", tiled=False, vram=1000, ram=0, working=0)
    monkeypatch.setattr("app.engines.diffusers_engine.plan_for", lambda *_: way)
    engine = loaded(wanted)
    assert engine._turns is not None
    kinds = {name: type(one) for name, one in engine._turns._copies.items()}
    assert kinds["transformer"] is Carried
    assert (draw(engine, wanted) == whole).all()
    engine.park()
    assert engine._turns.here == []
    assert (draw(engine, wanted) == whole).all()


@pytest.mark.usefixtures("_all_are_large")
def test_a_transformer_in_one_file_is_quantised_too(house: Path, tmp_path: Path) -> None:
    wanted = card(house, "flux")
    file = tmp_path / "flux.safetensors"
    weights = load_file(Path(wanted.source) / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(weights, file)
    counts = dict(weight_counts(wanted))
    one = wanted.model_copy(
        update={"source": str(file), "base": wanted.source, "parameters": counts}
    )
    engine = loaded(one)
    assert quantised(engine._loaded.transformer)
    assert (draw(engine, one) == draw(loaded(wanted), wanted)).all()


@pytest.mark.usefixtures("_all_are_large")
def test_it_takes_no_loras_and_says_so(house: Path) -> None:
    wanted = card(house, "flux")
    engine = loaded(wanted)
    with pytest.raises(InvalidRequest, match="eight bits") as refused:
        draw(engine, wanted, loras=(Lora(name="snow", scale=1.0),))
    assert refused.value.param == "loras"
    assert draw(engine, wanted).shape == (SIDE, SIDE, 3)


@pytest.mark.usefixtures("_all_are_large")
def test_without_the_package_the_model_cannot_be_loaded(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelUnavailable, match="a package that is not installed"):
        loaded(card(house, "flux"))


def test_a_wish_for_eight_bits_is_met_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = Room(80 * GB, 64 * GB)
    wishing, never = absent(quantization="int8"), absent(quantization="none")
    assert {way.weights for way in plans_for(wishing, "bfloat16")} == {"int8"}
    assert {way.weights for way in plans_for(never, "bfloat16")} == {"bfloat16"}
    found = plan_for(wishing, "cuda:0", plenty)
    assert found is not None
    assert (found.residency, found.weights) == ("resident", "int8")
    assert quantised_parts(wishing, found) == {"transformer", "text_encoder_2"}
    at_home = plan_for(wishing, "cpu", NO_LIMIT)
    assert at_home is not None
    # What it takes is known before it is loaded: a quarter of single precision, and what stays.
    assert bytes_needed(at_home, weight_bytes(wishing, "cpu")) == pytest.approx(
        sum(LARGE.values()) * 1.08, rel=0.05
    )
    # There is nothing to be held smaller in a model of convolutions.
    old = absent(quantization="int8", parameters={"unet": 2_567_463_684, "vae": 83_653_863})
    assert {way.weights for way in plans_for(old, "bfloat16")} == {"bfloat16"}
    assert plan_for(old, "cpu", NO_LIMIT) is None


def test_eight_bits_come_last_and_only_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no room for all weights beside a device that has none for them either."""
    short = Room(24 * GB, 32 * GB)
    found = plan_for(absent(), "cuda:0", short)
    assert found is not None
    assert (found.residency, found.weights) == ("resident", "int8")
    roomy = plan_for(absent(), "cuda:0", Room(24 * GB, 64 * GB))
    assert roomy is not None
    assert (roomy.residency, roomy.weights) == ("group_offload", "bfloat16")
    monkeypatch.setattr(fitting, "find_spec", lambda _: None)
    assert not any(way.quantised for way in plans_for(absent(), "bfloat16"))
    with pytest.raises(OutOfMemory, match=r"would: install easel\[int8\]\.$"):
        plan_for(absent(), "cuda:0", short)
    for hopeless, room in ((absent(quantization="none"), short), (absent(), Room(GB, GB))):
        with pytest.raises(OutOfMemory) as refused:
            plan_for(hopeless, "cuda:0", room)
        assert "easel[int8]" not in refused.value.message


def test_plain_weights_are_carried_by_the_fastest_way() -> None:
    plain = torch.nn.Linear(4, 4)
    assert isinstance(carrier_of([plain], "cpu"), HostCopy)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (diffusers.FluxTransformer2DModel, FLUX_SCHNELL),
        (diffusers.ZImageTransformer2DModel, Z_IMAGE),
        (
            T5EncoderModel,
            T5Config(
                d_model=4096,
                d_ff=10_240,
                num_layers=24,
                num_heads=64,
                vocab_size=32_128,
                feed_forward_proj="gated-gelu",
            ),
        ),
    ],
    ids=["Flux.1", "Z-Image", "T5 XXL"],
)
def test_nearly_all_weights_of_large_transformers_are_in_linear_layers(
    kind: Any, config: Any
) -> None:
    with torch.device("meta"):
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    layers = (one for one in model.modules() if isinstance(one, torch.nn.Linear))
    linear = sum(layer.weight.numel() for layer in layers)
    share = linear / sum(weight.numel() for weight in model.parameters())
    assert share * 1 + (1 - share) * 2 <= BYTES["int8"]
