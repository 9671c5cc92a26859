"""Control networks: their cards, what may be asked of them, their files, and where they are held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.control import STEERED, ControlCard, with_control
from app.domain.errors import EaselError, InvalidRequest, ModelUnavailable, OutOfMemory
from app.domain.model_card import ModelCard
from app.domain.pipelines import PIPELINES
from app.domain.request import Arguments, GenerationRequest, replay
from app.domain.upscaling import enlarging
from app.engines import flux, stable_diffusion
from app.engines.control import STEERINGS
from app.engines.diffusers_engine import DiffusersEngine
from app.engines.turnstile import Turnstile
from app.engines.upscaler_files import find_upscalers
from app.engines.weight_bytes import weight_bytes
from app.scheduling.fallback import Fallback
from app.settings import ConfigurationError, load_cards, load_controls
from app.workers.budget import Budget
from app.workers.engine_host import EngineHost
from tests import zoo
from tests.control_house import CONTROL, build, file_of, network
from tests.hub_mirror import COMMIT, Mirror
from tests.shelves import pulled, shelf_of

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = Path(__file__).parents[1] / "config"
CARDS = load_cards(CONFIG / "models")
CANNY = ControlCard(
    id="canny",
    aliases=("edges",),
    pipeline="StableDiffusionPipeline",
    source="/nowhere",
    controlnet_conditioning_scale=0.7,
)
KNOWN = {"canny": CANNY}


def wish(model: str = "sd15", **given: Any) -> GenerationRequest:
    arguments = Arguments(prompt="x", **given)
    request = CARDS[model].resolve(arguments, draw_seed=lambda: 3)
    return with_control(request, arguments, KNOWN)


# -- cards and requests ----------------------------------------------------------------------------


def test_the_cards_that_ship_are_read_and_steer_models_that_ship() -> None:
    cards = load_controls(CONFIG / "controls")
    assert len(cards) >= 7
    for card in cards.values():
        assert card.files.hub is not None
        assert any(card.steers(model) for model in CARDS.values()), card.id
    assert not cards.keys() & CARDS.keys()


@pytest.mark.parametrize(
    "text",
    [
        'id = "x"\npipeline = "FluxPipeline"',
        'id = "x"\npipeline = "SanaPipeline"\nsource = "/x"',
        'id = "a b"\npipeline = "FluxPipeline"\nsource = "/x"',
        'id = "x"\npipeline = "FluxPipeline"\nsource = "/x.safetensors"',
        'id = "x"\npipeline = "FluxPipeline"\nsource = "hub:A/B"',
        'id = "x"\npipeline = "FluxPipeline"\nsource = "/x"\nextra = 1',
        "id = ",
    ],
)
def test_a_card_that_cannot_be_ends_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"x\.toml"):
        load_controls(tmp_path)


def test_both_tables_know_the_same_pipelines_and_tasks() -> None:
    assert STEERED.keys() == STEERINGS.keys() <= PIPELINES.keys()
    for name, (_, tasks) in STEERED.items():
        assert set(tasks) <= STEERINGS[name].classes.keys()
        assert set(tasks) <= PIPELINES[name].tasks.keys()


def test_what_is_not_said_is_the_cards_or_diffusers() -> None:
    request = wish(control="edges", control_image=b"p")
    assert (request.control, request.controlnet_conditioning_scale) == ("canny", 0.7)
    assert (request.control_guidance_start, request.control_guidance_end) == (0.0, 1.0)


def test_a_replay_is_the_same_request() -> None:
    request = wish(
        control="canny",
        control_image=b"p",
        controlnet_conditioning_scale=0.3,
        control_guidance_start=0.1,
        control_guidance_end=0.6,
    )
    again = replay(request)
    assert with_control(CARDS["sd15"].resolve(again, draw_seed=lambda: 1), again, KNOWN) == request
    bare = request.without_pictures()
    assert bare.control_image is None
    assert bare.with_pictures_of(request) == request


def test_flux_under_control_has_no_negative_prompt_for_edits() -> None:
    known = {"f": CANNY.model_copy(update={"id": "f", "pipeline": "FluxPipeline"})}
    given = Arguments(
        prompt="x",
        image=b"p",
        negative_prompt="hens",
        true_cfg_scale=3.0,
        control="f",
        control_image=b"p",
    )
    card = CARDS["flux-dev"]
    request = with_control(card.resolve(given, draw_seed=lambda: 1), given, known)
    assert (request.negative_prompt, request.true_cfg_scale) == ("", 1.0)
    assert card.unused(given, request) == ["negative_prompt", "true_cfg_scale"]


@pytest.mark.parametrize("model", ["sana", "flux-kontext", "qwen-image"])
def test_kinds_without_networks_refuse(model: str) -> None:
    image = {"image": b"p"} if model == "flux-kontext" else {}
    with pytest.raises(InvalidRequest, match="under control") as refused:
        wish(model, control="canny", control_image=b"p", **image)
    assert refused.value.param == "control"


def test_an_upscaler_refuses(tmp_path: Path) -> None:
    given = Arguments(prompt="", image=b"p", image_size=(8, 8), control="canny")
    with pytest.raises(InvalidRequest) as refused:
        enlarging(find_upscalers(tmp_path)["lanczos"], given, metadata=True)
    assert refused.value.param == "control"


def test_no_other_model_is_tried_where_the_network_fails() -> None:
    card = CARDS["sd15"]
    choices = [(card, wish())]
    for kind in (ModelUnavailable, OutOfMemory):
        error = kind("no", param="control.model")
        assert Fallback(list(choices)).after(error, loading=True) is error
        assert Fallback(list(choices)).after(kind("no"), loading=True) == choices[0]


# -- files -----------------------------------------------------------------------------------------


def test_of_a_repository_only_the_network_is_fetched(tmp_path: Path, mirror: Mirror) -> None:
    repo = tmp_path / "networks"
    network("canny").save_pretrained(repo)
    for name in ("README.md", "diffusion_pytorch_model.bin", "shown.png", "x.py"):
        (repo / name).write_bytes(b"no")
    (repo / "images").mkdir()
    (repo / "images" / "config.json").write_text("{}")
    mirror.folders["tests/canny"] = repo
    card = CANNY.model_copy(update={"source": "hub:tests/canny", "revision": COMMIT}).files
    shelf = shelf_of(tmp_path, card)
    assert shelf.state("canny").state == "not_downloaded"
    assert pulled(shelf, "canny")[-1].state == "on_disk"
    names = {asked.name for asked in mirror.asked}
    assert names == {"", "config.json", "diffusion_pytorch_model.safetensors"}
    local = shelf.local("canny")
    assert local is not None
    whole = network("canny")
    assert weight_bytes(local, "cpu") == sum(one.nbytes for one in whole.parameters())
    assert shelf.remove("canny") > 0
    assert shelf.state("canny").state == "not_downloaded"


def test_a_repository_without_a_network_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"x")
    mirror.folders["tests/canny"] = tmp_path / "empty"
    card = CANNY.model_copy(update={"source": "hub:tests/canny", "revision": COMMIT}).files
    last = pulled(shelf_of(tmp_path, card), "canny")[-1]
    assert (last.state, "config.json" in last.reason) == ("unavailable", True)


# -- loaded ----------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    build(tmp_path, ["sd", "sdxl", "flux"], ["canny", "wide", "of-flux"])
    return tmp_path


def card_of(house: Path, name: str) -> ModelCard:
    return load_controls(house / "controls")[name].files


def test_networks_count_and_the_one_used_least_recently_goes(house: Path) -> None:
    engine = DiffusersEngine(stable_diffusion.RECIPES, Turnstile())
    engine.load(load_cards(house / "cards")["sd"], "cpu")
    alone = engine.memory
    canny = card_of(house, "canny")
    names = ["canny", "one", "two", "canny", "three"]
    for name in names:
        engine.under(canny.model_copy(update={"id": name}))
    held = {name for name in names if engine.listens_to(canny.model_copy(update={"id": name}))}
    assert held == {"canny", "two", "three"}
    assert not engine.listens_to(canny.model_copy(update={"source": "/elsewhere"}))
    assert engine.memory == alone + 3 * weight_bytes(canny, "cpu")
    engine.park()
    engine.unpark()
    assert engine.memory == alone
    engine.unload()


def test_idle_models_leave_for_a_network(house: Path) -> None:
    cards = load_cards(house / "cards")
    sizes = {name: weight_bytes(cards[name], "cpu") for name in ("sd", "sdxl")}
    extra = weight_bytes(card_of(house, "canny"), "cpu")
    room = sum(sizes.values()) + extra // 2
    told: list[Any] = []
    host = EngineHost("cpu", Budget(max_ram=room), told.append)
    host.load(cards["sdxl"])
    host.load(cards["sd"])
    assert set(told[-1].models) == {"sd", "sdxl"}
    given = Arguments(
        prompt="x", num_inference_steps=2, control="canny", control_image=file_of(CONTROL)
    )
    known = load_controls(house / "controls")
    request = with_control(cards["sd"].resolve(given, draw_seed=lambda: 1), given, known)
    events: list[Any] = []
    host.run(cards["sd"], request, events.append, control=card_of(house, "canny"))
    assert told[-1].models == ("sd",)
    assert told[-1].used == pytest.approx(sizes["sd"] + extra, rel=0.01)
    assert type(events[-1]).__name__ == "ImageFinished"
    host.close()


def _as_a_pickle(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"x")


def _of_another_class(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "_class_name": "UNet2DConditionModel"}))


def _without_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    weights: dict[str, torch.Tensor] = load_file(file)
    weights.pop("conv_in.weight")
    save_file(weights, file)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_as_a_pickle, "could run code"),
        (_of_another_class, "another kind"),
        (_without_a_layer, "not complete"),
    ],
)
def test_what_is_no_whole_network_is_refused(house: Path, damage: Any, why: str) -> None:
    engine = DiffusersEngine(stable_diffusion.RECIPES, Turnstile())
    engine.load(load_cards(house / "cards")["sd"], "cpu")
    damage(house / "networks" / "canny")
    with pytest.raises(ModelUnavailable, match=why) as refused:
        engine.under(card_of(house, "canny"))
    assert refused.value.param == "control.model"
    assert not engine.listens_to(card_of(house, "canny"))


def test_a_network_for_several_controls_is_refused(house: Path) -> None:
    engine = DiffusersEngine(flux.RECIPES, Turnstile())
    engine.load(load_cards(house / "cards")["flux"], "cpu")
    zoo.flux_controlnet(num_mode=2).save_pretrained(house / "networks" / "of-flux")
    with pytest.raises(ModelUnavailable, match="several controls"):
        engine.under(card_of(house, "of-flux"))


def test_a_network_of_another_width_is_the_requests_fault(house: Path) -> None:
    engine = DiffusersEngine(stable_diffusion.RECIPES, Turnstile())
    engine.load(load_cards(house / "cards")["sd"], "cpu")
    with pytest.raises(EaselError) as refused:
        engine.under(card_of(house, "wide"))
    assert isinstance(refused.value, InvalidRequest)
    assert refused.value.param == "control.model"
