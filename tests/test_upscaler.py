"""Enlarging in one process: Lanczos as Pillow's, networks as their papers say, tiles without seams."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.domain.errors import Cancelled, InvalidRequest, ModelUnavailable
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, StepFinished, Waited
from app.domain.request import Arguments, GenerationRequest, replay
from app.domain.upscaling import TILE, Upscalers, enlarging, with_upscaling
from app.engines.image_codec import Pixels
from app.engines.picture_text import read
from app.engines.turnstile import Turnstile
from app.engines.upscaler import Upscaler
from app.engines.upscaler_files import find_upscalers
from tests.networks import by_hand, write_network
from tests.pictures import pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    write_network(folder / "four.safetensors")
    write_network(folder / "two.safetensors", channels=12)
    return folder


@pytest.fixture(scope="module")
def known(folder: Path) -> Upscalers:
    return find_upscalers(folder)


def noise(width: int, height: int) -> Pixels:
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


def png(picture: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def wish(known: Upscalers, name: str, picture: Pixels, **given: Any) -> GenerationRequest:
    height, width = picture.shape[:2]
    arguments = Arguments(prompt="", image=png(picture), image_size=(width, height), **given)
    return enlarging(known[name], arguments, metadata=True)


def run(known: Upscalers, request: GenerationRequest) -> list[EngineEvent]:
    engine = Upscaler(Turnstile())
    engine.load(known[request.model].card, "cpu")
    events: list[EngineEvent] = []
    engine.generate(request, events.append)
    return [event for event in events if not isinstance(event, Waited)]


def enlarged(known: Upscalers, name: str, picture: Pixels, **given: Any) -> Pixels:
    last = run(known, wish(known, name, picture, **given))[-1]
    assert isinstance(last, ImageFinished)
    return pixels(last.image)


@pytest.mark.parametrize("scale", [2, 4])
def test_lanczos_is_pillows(known: Upscalers, scale: int) -> None:
    picture = noise(50, 30)
    wanted = Image.fromarray(picture).resize((50 * scale, 30 * scale), Image.Resampling.LANCZOS)
    assert (enlarged(known, "lanczos", picture, upscale=scale) == np.asarray(wanted)).all()


@pytest.mark.parametrize(("name", "scale", "fold"), [("four", 4, 1), ("two", 2, 2)])
def test_a_network_does_what_its_paper_says(
    known: Upscalers, folder: Path, name: str, scale: int, fold: int
) -> None:
    picture = noise(40, 24)
    weights = write_network(folder / f"{name}.safetensors", channels=3 * fold**2)
    values = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    wanted = by_hand(weights, values, fold)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert wanted.std() > 5  # not all black or white
    found = enlarged(known, name, picture, upscale=scale)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 0.51


def test_a_picture_of_odd_sides_keeps_them(known: Upscalers) -> None:
    assert enlarged(known, "two", noise(33, 21), upscale=2).shape == (42, 66, 3)


def test_one_that_is_made_for_4_serves_2(known: Upscalers) -> None:
    picture = noise(32, 32)
    large = Image.fromarray(enlarged(known, "four", picture, upscale=4))
    wanted = large.resize((64, 64), Image.Resampling.LANCZOS)
    assert (enlarged(known, "four", picture, upscale=2) == np.asarray(wanted)).all()


def test_tiles_leave_no_seams_and_each_is_a_step(known: Upscalers) -> None:
    picture = noise(TILE + 40, TILE + 10)
    request = wish(known, "four", picture, upscale=4)
    events = run(known, request)
    assert [event.step for event in events if isinstance(event, StepFinished)] == [1, 2, 3, 4]
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["preparing", "generating", "post_processing"]
    assert events[1] == PhaseStarted("generating", 4)
    assert isinstance(events[-1], ImageFinished)
    whole = Upscaler(Turnstile())
    whole.load(known["four"].card, "cpu")
    difference = np.abs(pixels(events[-1].image).astype(int) - whole._forward(picture))
    assert difference.max() <= 2


def test_a_cancelled_one_stops_at_its_tile(known: Upscalers) -> None:
    engine = Upscaler(Turnstile())
    engine.load(known["four"].card, "cpu")
    told: list[EngineEvent] = []

    def report(event: EngineEvent) -> None:
        told.append(event)
        if isinstance(event, StepFinished):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        engine.generate(wish(known, "four", noise(TILE * 2, 64), upscale=4), report)
    assert sum(isinstance(event, StepFinished) for event in told) == 1


def test_what_is_transparent_lies_on_white(known: Upscalers) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(buffer, "PNG")
    arguments = Arguments(prompt="", image=buffer.getvalue(), image_size=(16, 16))
    last = run(known, enlarging(known["lanczos"], arguments, metadata=True))[-1]
    assert isinstance(last, ImageFinished)
    assert (pixels(last.image) == 255).all()


def test_it_tells_what_was_done_or_nothing(known: Upscalers) -> None:
    for metadata, told in ((True, {"upscaler": "lanczos", "upscale": "2"}), (False, {})):
        last = run(known, wish(known, "lanczos", noise(20, 20), metadata=metadata))[-1]
        assert isinstance(last, ImageFinished)
        assert read(last.image).facts == told


def test_a_replay_is_the_same_request(known: Upscalers) -> None:
    request = wish(known, "four", noise(TILE + 1, 50), upscale=4, output_format="webp")
    assert (request.num_inference_steps, request.width, request.height) == (2, 4 * TILE + 4, 200)
    assert enlarging(known["four"], replay(request), metadata=False) == request


@pytest.mark.parametrize(
    ("name", "scale", "size"),
    [
        ("lanczos", 3, (10, 10)),
        ("lanczos", 1, (10, 10)),
        ("lanczos", 0, (10, 10)),
        ("lanczos", -2, (10, 10)),
        ("two", 4, (10, 10)),
        ("lanczos", 4, (2100, 2100)),
        ("four", 2, (4200, 4200)),
    ],
)
def test_what_cannot_be_done_is_refused(
    known: Upscalers, name: str, scale: int, size: tuple[int, int]
) -> None:
    given = Arguments(prompt="", image=b"", image_size=size, upscale=scale)
    with pytest.raises(InvalidRequest) as refused:
        enlarging(known[name], given, metadata=True)
    assert refused.value.param == "upscale"


def test_an_unknown_upscaler_of_a_drawn_picture_is_refused(known: Upscalers) -> None:
    request = wish(known, "lanczos", noise(8, 8))
    with pytest.raises(InvalidRequest) as refused:
        with_upscaling(request, Arguments(prompt="", upscale=2, upscaler="x\n"), known)
    assert refused.value.param == "upscaler"
    assert "x" not in refused.value.message


def test_files_are_found_by_what_they_hold(known: Upscalers, tmp_path: Path) -> None:
    assert {name: one.scales for name, one in known.items()} == {
        "lanczos": (2, 4),
        "four": (2, 4),
        "two": (2,),
    }
    assert list(find_upscalers(tmp_path / "nowhere")) == ["lanczos"]


OTHER = b'{"conv_first.weight": {"shape": [8, 3, 3, 3]}}'  # and no layer that tells the rest


@pytest.mark.parametrize(
    "content",
    [b"", b"\x02\0\0\0\0\0\0\0{}", b"x" * 100, bytes([len(OTHER), *bytes(7)]) + OTHER],
)
def test_a_file_of_something_else_ends_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.safetensors holds no weights of a Real-ESRGAN"):
        find_upscalers(tmp_path)


def test_damaged_weights_are_told_when_they_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    write_network(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match="model cut cannot be loaded"):
        Upscaler(Turnstile()).load(find_upscalers(tmp_path)["cut"].card, "cpu")
