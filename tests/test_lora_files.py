"""Files with LoRAs: what they tell, which are refused unread, where they come from."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.domain.errors import InvalidRequest, UnknownLora
from app.domain.lora import Lora, lora_id
from app.domain.model_card import ModelCard
from app.model_files import lora_facts
from app.model_files.loras import LoraShelf, lora_card
from app.settings import ConfigurationError, load_settings
from tests import loras
from tests.hub_mirror import COMMIT, Mirror
from tests.painter import CARDS
from tests.shelves import shelf_of, until

SKETCH, FLUX = CARDS["sketch"], CARDS["sketch-flux"]


def pair(module: str, width: int = 8, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{module}.lora_A.weight": torch.ones(rank, width),
        f"{module}.lora_B.weight": torch.ones(8, rank),
    }


UNET = pair("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k")


def kohya(module: str, width: int) -> dict[str, Tensor]:
    return {
        f"{module}.lora_down.weight": torch.ones(2, width),
        f"{module}.lora_up.weight": torch.ones(8, 2),
        f"{module}.alpha": torch.tensor(1.0),
    }


ATTN2 = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("found", "told", "family"),
    [
        (UNET, {}, "unet"),
        (kohya(ATTN2, 768), {}, "sd1"),
        (kohya(ATTN2, 1024), {}, "sd2"),
        (kohya(ATTN2, 2048), {"ss_base_model_version": "sd_1.5"}, "sdxl"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), {}, "flux"),
        (kohya("lora_unet_double_blocks_0_img_attn_qkv", 64), {}, "flux"),
        (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), {}, "flux2"),
        (pair("transformer.transformer_blocks.0.img_mlp.net.0.proj"), {}, "qwen-image"),
        (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 64), {}, "sd3"),
        (pair("transformer.transformer_blocks.0.ff_context.net.2"), {}, ""),  # or Flux
        (pair("transformer.transformer_blocks.0.attn.to_q"), {}, ""),
        (
            pair("transformer.transformer_blocks.0.attn.to_q"),
            {"modelspec.architecture": "stable-diffusion-3-medium/lora"},
            "sd3",
        ),
        (
            pair("transformer.transformer_blocks.0.attn.to_q"),
            {"modelspec.architecture": "Flux-1-dev/lora"},
            "flux",
        ),
        (
            pair("transformer.layers.0.attention.to_q"),
            {"ss_base_model_version": "z_image"},
            "z-image",
        ),
    ],
)
def test_what_it_is_for(
    tmp_path: Path, found: dict[str, Tensor], told: dict[str, str], family: str
) -> None:
    file = loras.write(tmp_path / "a.safetensors", found, **told)
    assert lora_facts.read(file).family == family


def test_its_trigger_words(tmp_path: Path) -> None:
    def words(**told: str) -> tuple[str, ...]:
        return lora_facts.read(loras.write(tmp_path / "a.safetensors", UNET, **told)).trigger_words

    counted = json.dumps({"10_fox": {"fox": 9, "a snowy\nhill": 12}, "5_ox": {"fox": 4, "ox": 1}})
    assert words() == ()
    assert words(ss_tag_frequency=counted) == ("fox", "a snowy hill", "ox")
    said = {"modelspec.trigger_phrase": "sks style, \x1b[31mred"}
    assert words(ss_tag_frequency=counted, **said) == ("sks style", "[31mred")
    for nonsense in ("no JSON", "[1]", '{"a": 3}', '{"a": {"b": "many"}}', "[" * 100_000):
        assert words(ss_tag_frequency=nonsense) == ()


def test_its_hash_is_a1111s(tmp_path: Path) -> None:
    """SHA-256 of all behind the header, so that what a file tells of itself does not change it."""
    one = loras.write(tmp_path / "a.safetensors", UNET)
    other = loras.write(tmp_path / "b.safetensors", UNET, author="somebody")
    data = one.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert lora_facts.digest(one) == hashlib.sha256(data[start:]).hexdigest()
    assert lora_facts.digest(one) == lora_facts.digest(other)
    assert one.read_bytes() != other.read_bytes()


def damaged(file: Path) -> None:
    file.write_bytes(loras.write(file, UNET).read_bytes()[:-1])


def longer(file: Path) -> None:
    file.write_bytes(loras.write(file, UNET).read_bytes() + b"x")


def a_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(UNET))


def endless_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def deep_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_tensors(file: Path) -> None:
    loras.write(file, {})


def with_weights(name: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        loras.write(file, {**UNET, name: torch.ones(8)})

    return make


def integers(file: Path) -> None:
    loras.write(file, {name: tensor.to(torch.int8) for name, tensor in UNET.items()})


def saying(**settings: object) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        loras.write(file, UNET, **loras.settings(r=2, lora_alpha=2, **settings))

    return make


def settings_of_no_kind(file: Path) -> None:
    loras.write(file, UNET, lora_adapter_metadata="[1, 2]")


@pytest.mark.parametrize(
    "make",
    [
        damaged,
        longer,
        a_pickle,
        endless_header,
        deep_header,
        empty,
        no_tensors,
        integers,
        with_weights("unet.conv_in.weight"),
        with_weights("transformer.transformer_blocks.0.attn.norm_q.weight"),
        with_weights("lora_controlnet"),
        with_weights("unet.mid_block.bias"),
        saying(init_lora_weights="pissa"),
        saying(init_lora_weights="olora"),
        saying(bias="all"),
        saying(modules_to_save=["conv_in"]),
        saying(megatron_config={"a": 1}, megatron_core="os"),
        saying(target_modules="(a+)+$"),
        saying(rank_pattern={"(a+)+$": 2}),
        saying(layer_replication=[[0, 4]]),
        saying(something_new=3),
        settings_of_no_kind,
    ],
)
def test_a_file_that_must_not_be_loaded(
    tmp_path: Path, make: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "folder" / "bad.safetensors"
    file.parent.mkdir()
    make(file)
    with pytest.raises(ValueError, match=r"^its file "):
        lora_facts.read(file)
    shelf = library(file.parent)
    (shown,) = shelf.shown()
    assert (shown.name, shown.state) == ("bad", "unavailable")
    assert shown.reason.startswith("LoRA bad cannot be used: its file ")
    with pytest.raises(InvalidRequest) as refused:
        shelf.check((Lora("bad"),), SKETCH)
    assert refused.value.param == "loras"


def test_settings_that_every_file_has(tmp_path: Path) -> None:
    """All that diffusers writes of peft's, with what is usual."""
    peft = pytest.importorskip("peft")
    usual = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_k"], rank_pattern={"^a.b": 3})
    told = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in usual.to_dict().items()
    }
    lora_facts.read(loras.write(tmp_path / "a.safetensors", UNET, **loras.settings(**told)))


# -- the shelf -------------------------------------------------------------------------------------


def library(folder: Path, *, most: int = 4, **hub: ModelCard) -> LoraShelf:
    return LoraShelf(folder, hub, shelf_of(folder / "state"), most=most)


def test_a_folder_is_looked_at_anew(tmp_path: Path) -> None:
    shelf = library(tmp_path)
    assert shelf.names() == []
    with pytest.raises(UnknownLora):
        shelf.check((Lora("snow"),), SKETCH)
    file = loras.write(tmp_path / "snow.safetensors", UNET, **{"modelspec.trigger_phrase": "snowy"})
    shelf.check((Lora("snow"),), SKETCH)
    (shown,) = shelf.shown()
    assert (shown.name, shown.family, shown.trigger_words) == ("snow", "unet", ("snowy",))
    assert (shown.bytes, shown.state, shown.reason) == (file.stat().st_size, "on_disk", "")
    a_pickle(file)
    assert shelf.one("snow").state == "unavailable"
    file.unlink()
    with pytest.raises(UnknownLora) as refused:
        shelf.check((Lora("snow"),), SKETCH)
    assert refused.value.param == "loras"


def test_only_plain_names_count(tmp_path: Path) -> None:
    for name in ("snow.safetensors", "with space.safetensors", ".hidden.safetensors", "a.bin"):
        loras.write(tmp_path / name, UNET)
    (tmp_path / "folder.safetensors").mkdir()
    loras.write(tmp_path / "inside" / "ice.safetensors", UNET)
    assert library(tmp_path).names() == ["snow"]


def test_the_wrong_kind_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    loras.write(tmp_path / "flux.safetensors", pair("transformer.single_transformer_blocks.0.x"))
    loras.write(tmp_path / "xl.safetensors", kohya(ATTN2, 2048))
    loras.write(tmp_path / "unet.safetensors", UNET)
    loras.write(tmp_path / "unknown.safetensors", pair("transformer.x"))
    shelf = library(tmp_path)
    shelf.check((Lora("unet"), Lora("unknown")), SKETCH)
    shelf.check((Lora("flux"), Lora("unknown")), FLUX)
    for name, card in (("flux", SKETCH), ("xl", SKETCH), ("unet", FLUX)):
        with pytest.raises(InvalidRequest, match="is for models of kind") as refused:
            shelf.check((Lora(name),), card)
        assert refused.value.param == "loras"


def test_how_many_a_request_may_name(tmp_path: Path) -> None:
    for name in "abc":
        loras.write(tmp_path / f"{name}.safetensors", UNET)
    shelf = library(tmp_path, most=2)
    shelf.check((Lora("a"), Lora("b")), SKETCH)
    with pytest.raises(InvalidRequest, match="At most 2"):
        shelf.check((Lora("a"), Lora("b"), Lora("c")), SKETCH)


# -- the Hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, mirror: Mirror) -> Mirror:
    folder = tmp_path / "lora"
    loras.write(folder / "snow.safetensors", UNET)
    (folder / "snow.bin").write_bytes(pickle.dumps(UNET))
    mirror.folders["tests/lora"] = folder
    return mirror


def test_one_of_the_hub_is_fetched_like_a_model(tmp_path: Path, hub: Mirror) -> None:
    card = lora_card("snow", "hub:tests/lora", file="snow.safetensors", revision=COMMIT)
    models = shelf_of(tmp_path)
    shelf = LoraShelf(tmp_path / "none", {"snow": card}, models, most=4)
    assert shelf.one("snow").state == "not_downloaded"
    shelf.check((Lora("snow"),), SKETCH)  # a job would wait for it
    hub.damaged["snow.safetensors"] = 1
    shelf.pull("snow")
    states = until(lambda: models.state(lora_id("snow")))
    assert states[-1].state == "on_disk"
    assert [asked.name for asked in hub.asked if asked.name] == ["snow.safetensors"] * 2
    local = models.local(lora_id("snow"))
    assert local is not None
    assert Path(local.source).read_bytes() == (tmp_path / "lora/snow.safetensors").read_bytes()
    assert shelf.one("snow").family == "unet"
    with pytest.raises(InvalidRequest, match="is for models of kind unet"):
        shelf.check((Lora("snow"),), FLUX)
    assert models.remove(lora_id("snow")) > 0
    assert shelf.one("snow").state == "not_downloaded"


def test_one_that_cannot_be_fetched_says_why(tmp_path: Path, hub: Mirror) -> None:
    card = lora_card("ice", "hub:tests/lora", file="ice.safetensors", revision=COMMIT)
    models = shelf_of(tmp_path)
    shelf = LoraShelf(tmp_path / "none", {"ice": card}, models, most=4)
    shelf.pull("ice")
    until(lambda: models.state(lora_id("ice")))
    assert shelf.one("ice").state == "unavailable"
    assert shelf.one("ice").reason == (
        "LoRA ice cannot be fetched: its repository has no such file."
    )
    shelf.check((Lora("ice"),), SKETCH)  # the next job may try again


def test_the_hubs_goes_before_a_file_of_the_same_name(tmp_path: Path) -> None:
    loras.write(tmp_path / "snow.safetensors", UNET)
    card = lora_card("snow", "hub:tests/lora", file="snow.safetensors", revision=COMMIT)
    assert library(tmp_path, snow=card).one("snow").state == "not_downloaded"


@pytest.mark.parametrize(
    "given",
    [
        {"../snow": {"source": "hub:tests/lora", "file": "a.safetensors", "revision": "main"}},
        {"snow": {"source": "hub:tests/lora", "file": "a.bin", "revision": "main"}},
        {"snow": {"source": "/etc/passwd", "file": "a.safetensors", "revision": "main"}},
        {"snow": {"source": "hub:../lora", "file": "a.safetensors", "revision": "main"}},
        {"snow": {"source": "hub:tests/lora", "file": "../a.safetensors", "revision": "main"}},
        {"snow": {"source": "hub:tests/lora", "revision": "main"}},
        {"snow": {"source": "hub:tests/lora", "file": "a.safetensors"}},
    ],
)
def test_settings_that_cannot_be(given: object) -> None:
    with pytest.raises(ConfigurationError):
        load_settings(loras=given).lora_cards()


def test_a_link_is_as_good_as_a_file(tmp_path: Path) -> None:
    file = loras.write(tmp_path / "elsewhere" / "abc", UNET)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "snow.safetensors").symlink_to(file)
    shelf = library(tmp_path / "here")
    assert shelf.one("snow").state == "on_disk"
    shutil.rmtree(tmp_path / "elsewhere")
    assert shelf.names() == []
