"""What fits where: plans of memory, from numbers alone, and the numbers from the real architectures."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.domain.memory_plan import DECODE, DENOISE, Needs, Plan, Room, choose, plans, refusal
from bench.activations import of_decoder, of_denoiser
from bench.architectures import ARCHITECTURES, Architecture

GB = 1_000_000_000
PLENTY = Room(vram=1000 * GB, ram=1000 * GB)
SCHNELL = Needs(
    {
        "transformer": 11_891_178_560,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "vae": 83_819_683,
    }
)
SD15 = Needs({"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863})


def chosen(needs: Needs, vram: float, ram: float, side: int = 1024) -> Plan:
    way = choose(plans(needs, width=side, height=side), Room(int(vram * GB), int(ram * GB)))
    assert way is not None
    return way


@pytest.mark.parametrize(
    ("vram", "ram", "residency", "weights"),
    [
        (48, 32, "resident", "bfloat16"),
        (32, 64, "model_offload", "bfloat16"),
        (24, 64, "group_offload", "bfloat16"),
        (6, 64, "group_offload", "bfloat16"),
        (24, 32, "resident", "int8"),
        (15, 32, "model_offload", "int8"),
        (15, 18, "model_offload", "int8"),
    ],
)
def test_flux_schnell_gets_a_plan(vram: float, ram: float, residency: str, weights: str) -> None:
    way = chosen(SCHNELL, vram, ram)
    assert (way.residency, way.weights) == (residency, weights)
    assert way.vram <= vram * GB
    assert way.ram <= ram * GB


def test_a_small_model_stays_whole_on_a_small_card() -> None:
    way = chosen(SD15, 4, 16, side=512)
    assert (way.residency, way.weights, way.tiled) == ("resident", "bfloat16", False)
    weights = 2 * (859_520_964 + 123_060_480 + 83_653_863)
    assert way.vram == pytest.approx((weights + DECODE * 512 * 512) * 1.05 + 0.6 * GB, rel=1e-6)


def test_decoding_in_tiles_is_for_pictures_that_do_not_fit_otherwise() -> None:
    large = chosen(SD15, 4.5, 16, side=1536)
    assert large.tiled
    assert large.changes_pictures
    assert large.vram < chosen(SD15, 16, 16, side=1536).vram
    assert not chosen(SD15, 4.5, 16, side=512).changes_pictures


def test_plans_that_keep_pictures_come_before_those_that_change_them() -> None:
    ways = plans(SCHNELL, width=1024, height=1024)
    assert ways[0].residency == "resident"
    assert all(
        before.changes_pictures <= after.changes_pictures for before, after in pairwise(ways)
    )
    assert not any(way.quantised for way in plans(SCHNELL, width=8, height=8, quantised=False))


def test_small_parts_are_not_quantised() -> None:
    assert SCHNELL.quantisable == {"transformer", "text_encoder_2"}
    assert not any(way.quantised for way in plans(SD15, width=512, height=512))


def test_a_refusal_says_what_would_fit() -> None:
    ways = plans(SCHNELL, width=1024, height=1024)
    room = Room(4 * GB, 8 * GB)
    assert choose(ways, room) is None
    told = refusal(ways, room)
    assert "at least" in told
    assert "4.0 GB and 8.0 GB" in told
    least = [way for way in ways if f"{way.vram / 1e9:.1f} GB on the device" in told]
    assert least
    assert choose(ways, Room(least[0].vram, least[0].ram)) is not None


def test_half_precision_is_half_of_single() -> None:
    single = plans(SD15, width=512, height=512, floats="float32")[0]
    half = plans(SD15, width=512, height=512, floats="bfloat16")[0]
    reserve = 0.6 * GB
    assert single.vram - reserve == pytest.approx(2 * (half.vram - reserve), rel=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: arch.name)
def test_the_constants_are_those_of_the_real_architectures(arch: Architecture) -> None:
    side = 512
    assert of_decoder(arch, side) == pytest.approx(DECODE, rel=0.01)
    counted = of_denoiser(arch, side)
    assert 0.5 * DENOISE < counted <= 1.01 * DENOISE
