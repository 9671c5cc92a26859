"""Small pictures beside the large ones: made in the worker, and passed on by all that stands between.

Promised: at most 256 pixels on the longer side, like the picture, and telling nothing; none where the
picture is small itself; the fake engine makes them only when its card asks.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.domain.events import EngineEvent, ImageFinished
from app.domain.model_card import Defaults, FakeTimes, ModelCard
from app.domain.request import Arguments
from app.engines import stable_diffusion
from app.engines.fake import FakeEngine
from app.engines.image_codec import Pixels, thumbnail
from app.workers import wire
from app.workers.base import RunSpec
from app.workers.in_process import InProcessPool
from app.workers.local import LocalPool
from app.workers.second_try import Retelling
from tests.painter import Painter

CARD = ModelCard(
    id="fake",
    family="fake",
    source="/",
    defaults=Defaults(sampler="euler", width=512, height=400, num_inference_steps=1),
    fake=FakeTimes(thumbnails=True),
)


def smooth(height: int, width: int) -> Pixels:
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    levels = np.stack([down, across, (down + across) / 2], axis=-1)
    return (levels * 255).astype(np.uint8)


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((1024, 1024), (256, 256)),
        ((1024, 512), (256, 128)),
        ((512, 2048), (64, 256)),
        ((385, 64), (256, 43)),
        ((2048, 8), (256, 1)),
    ],
)
def test_a_large_picture_has_a_small_one_of_its_shape(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    picture = opened(thumbnail(smooth(*size)))
    assert (picture.format, picture.mode) == ("WEBP", "RGB")
    assert (picture.height, picture.width) == small


@pytest.mark.parametrize("size", [(64, 64), (384, 384), (384, 200)])
def test_a_small_picture_needs_none(size: tuple[int, int]) -> None:
    assert thumbnail(smooth(*size)) is None


def test_it_looks_like_the_picture() -> None:
    picture = opened(thumbnail(smooth(1024, 768)))
    likeness = np.asarray(picture).astype(int) - smooth(*picture.size[::-1])
    assert np.abs(likeness).mean() < 3


def test_pixels_in_any_order_are_taken_as_they_look() -> None:
    turned = smooth(640, 480).transpose(1, 0, 2)
    assert thumbnail(turned) == thumbnail(np.ascontiguousarray(turned))


def test_it_tells_nothing() -> None:
    data = thumbnail(smooth(512, 512)) or b""
    picture = opened(data)
    assert not {"exif", "xmp", "icc_profile"} & set(picture.info)
    assert not {b"EXIF", b"XMP ", b"VP8X"} & {data[12:16]}


def drawn(card: ModelCard, **given: Any) -> list[ImageFinished]:
    engine, events = FakeEngine(), list[EngineEvent]()
    engine.load(card, "fake")
    request = card.resolve(Arguments(prompt="x", **given), draw_seed=lambda: 1)
    engine.generate(request, events.append)
    return [event for event in events if isinstance(event, ImageFinished)]


def test_the_fake_engine_makes_them_when_it_is_asked() -> None:
    assert [opened(event.thumbnail).size for event in drawn(CARD, n=2)] == [(256, 200)] * 2
    assert drawn(CARD, width=128, height=128)[0].thumbnail is None
    usual = CARD.model_copy(update={"fake": FakeTimes()})
    assert drawn(usual)[0].thumbnail is None


def test_the_real_engine_makes_them() -> None:
    sketch = Painter("sketch", stable_diffusion)
    for size, small in (((512, 256), (256, 128)), ((128, 128), None)):
        events = sketch.run(sketch.wish(width=size[0], height=size[1], num_inference_steps=1))
        (finished,) = (event for event in events if isinstance(event, ImageFinished))
        if small is None:
            assert finished.thumbnail is None
            continue
        picture = opened(finished.thumbnail).convert("RGB")
        assert picture.size == small
        whole = opened(finished.image).convert("RGB").resize(small, Image.Resampling.BOX)
        assert np.abs(np.asarray(whole).astype(int) - np.asarray(picture)).mean() < 6


@pytest.mark.parametrize("kind", [InProcessPool, LocalPool])
async def test_they_come_from_the_worker(kind: type[InProcessPool | LocalPool]) -> None:
    pool = kind(("fake",))
    await pool.start()
    try:
        async for _ in pool.watch():
            break  # it is up
        request = CARD.resolve(Arguments(prompt="x"), draw_seed=lambda: 1)
        spec = RunSpec("r1", 1, pool.slots()["fake"].epoch, CARD, request)
        events = [event async for event in pool.run("fake", spec)]
    finally:
        await pool.close()
    (finished,) = (event for event in events if isinstance(event, ImageFinished))
    assert opened(finished.thumbnail).size == (256, 200)


def test_a_second_try_tells_them_once() -> None:
    told: list[EngineEvent] = []
    telling = Retelling(told.append)
    first, second = (
        ImageFinished(index, b"i", 1, "image/png", thumbnail=b"t%d" % index) for index in (0, 1)
    )
    telling(first)
    telling.again()
    telling(first)
    telling(second)
    assert [event for event in told if isinstance(event, ImageFinished)] == [first, second]


def test_they_cross_the_wire_whole() -> None:
    event = ImageFinished(0, b"i", 1, "image/png", 3, bytes(range(256)))
    body = wire.frame(wire.Happened("r1", event))[4:]
    happened = wire._from_worker.decode(body)
    assert isinstance(happened, wire.Happened)
    assert happened.event == event
