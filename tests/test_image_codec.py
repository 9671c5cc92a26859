"""Pixels to files and back.

Promised: a PNG holds exactly the pixels and tells what it is given, in any script; quality acts; an
input that is no PNG, JPEG or WebP, or damaged, or too large by its header, is the client's mistake
and nothing of the decoder's own words gets out; inputs come upright, opaque, and in true tones.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.domain.errors import InvalidRequest
from app.domain.model_card import Defaults, ModelCard
from app.domain.request import MAX_INPUT_PIXELS, Arguments, GenerationRequest
from app.engines.image_codec import Pixels, decode, decode_mask, decode_rgb, encode, encode_png

CARD = ModelCard(id="m", family="fake", source="/", defaults=Defaults(sampler="euler"))
RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(side: int = 64) -> Pixels:
    ramp = np.linspace(0, 255, side)
    levels = np.stack([ramp[None, :] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp[None, :]])
    return np.stack([*levels, levels.mean(axis=0)], axis=-1).astype(np.uint8)


def wish(output_format: str = "png", quality: int = 100) -> GenerationRequest:
    given = Arguments(prompt="a fox", output_format=output_format, output_compression=quality)
    return CARD.resolve(given, draw_seed=lambda: 1)


def file_of(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# -- out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (3, 7), (128, 128), (384, 256), (257, 129), (512, 512)]
)
@pytest.mark.parametrize("kind", ["noise", "flat", "smooth"])
def test_a_png_holds_exactly_the_pixels(width: int, height: int, kind: str) -> None:
    pixels = noise(width, height)
    if kind == "flat":
        pixels[:] = (17, 200, 93)
    elif kind == "smooth":
        pixels = np.resize(smooth(), (height, width, 3))
    picture = opened(encode_png(pixels, {}))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(picture), pixels)


def test_pixels_that_do_not_lie_in_a_row_are_encoded_as_they_look() -> None:
    turned = noise(64, 32).transpose(1, 0, 2)[:, ::-1]
    assert np.array_equal(np.asarray(opened(encode_png(turned, {}))), turned)
    columns = np.asfortranarray(noise(64, 32))
    assert np.array_equal(np.asarray(opened(encode_png(columns, {}))), columns)
    flat = np.broadcast_to(np.array(RED, np.uint8), (16, 24, 3))
    assert np.array_equal(np.asarray(opened(encode_png(flat, {}))), flat)


def test_a_png_tells_what_it_is_given_in_any_script() -> None:
    about = {"prompt": "ein Fuchs, größer — 狐狸 🦊\nin zwei Zeilen", "seed": "4294967295"}
    picture = opened(encode(noise(64, 64), wish(), about))
    picture.load()
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    assert picture.text == about


def test_every_chunk_of_a_png_carries_its_true_checksum() -> None:
    data = encode(noise(64, 64), wish(), {"prompt": "größer 狐", "seed": "1"})
    opened(data).verify()
    at, kinds = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert zlib.crc32(body) == checksum
        kinds.append(body[:4])
        at += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert kinds.count(b"iTXt") == 2


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_quality_buys_likeness_with_bytes(name: str, kind: str) -> None:
    pixels = smooth(128)
    files = [encode(pixels, wish(name, quality)) for quality in (0, 40, 100)]
    sizes = [len(file) for file in files]
    errors = [np.abs(np.asarray(opened(file)).astype(int) - pixels).mean() for file in files]
    assert {opened(file).format for file in files} == {kind}
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2.0


# -- in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_the_three_kinds_are_read(kind: str) -> None:
    picture = decode_rgb(file_of(Image.fromarray(smooth()), kind), "image", (64, 64))
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    assert np.abs(np.asarray(picture).astype(int) - smooth()).mean() < 4


def bomb() -> bytes:
    """A PNG of one pixel whose header claims more than may be decoded."""
    data = bytearray(file_of(Image.new("RGB", (1, 1))))
    data[16:24] = struct.pack(">II", 8192, MAX_INPUT_PIXELS // 8192 + 1)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def giant() -> bytes:
    data = bytearray(bomb())
    data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


PNG = file_of(Image.fromarray(noise(64, 64)))
BAD = {
    "empty": b"",
    "text": b"hello, I am not a picture at all",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
    "gif": file_of(Image.new("RGB", (8, 8)), "GIF"),
    "bmp": file_of(Image.new("RGB", (8, 8)), "BMP"),
    "tiff": file_of(Image.new("RGB", (8, 8)), "TIFF"),
    "signature": PNG[:8],
    "header": PNG[:33],
    "half": PNG[: len(PNG) // 2],
    "half-jpeg": file_of(Image.fromarray(noise(64, 64)), "JPEG")[:900],
    "half-webp": file_of(Image.fromarray(noise(64, 64)), "WEBP")[:900],
    "damaged": PNG[:60] + bytes(64) + PNG[124:],
    "bomb": bomb(),
    "giant": giant(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_the_mistake_of_a_client(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(BAD[name], "image")
    error = caught.value
    assert (error.param, error.code) == ("image", "invalid_value")
    assert error.message in {
        "image is not a readable PNG, JPEG or WebP.",
        "image has more than 64 megapixels.",
    }
    with pytest.raises(InvalidRequest):
        decode_rgb(BAD[name], "image", (64, 64))
    with pytest.raises(InvalidRequest) as caught:
        decode_mask(BAD[name], (64, 64))
    assert caught.value.param == "mask"


def test_a_picture_too_large_by_its_header_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidRequest, match="more than 64 megapixels"):
        decode(bomb(), "image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int) -> None:
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32] = RED  # red is top left when it is upright
    lying = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(file_of(Image.fromarray(np.ascontiguousarray(lying)), exif=exif), "image")
    assert picture.size == (64, 32)
    assert np.array_equal(np.asarray(picture), upright)


def test_what_is_transparent_lies_on_white() -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 16, 32))
    picture.paste((0, 0, 0, 128), (16, 16, 32, 32))
    flat = decode_rgb(file_of(picture), "image", (32, 32))
    assert flat.getpixel((4, 4)) == RED
    assert flat.getpixel((28, 4)) == WHITE
    assert flat.getpixel((28, 28)) == pytest.approx((127, 127, 127), abs=1)


def test_an_input_takes_the_size_asked_for() -> None:
    assert decode_rgb(PNG, "image", (128, 96)).size == (128, 96)
    assert decode_mask(PNG, (40, 24)).size == (40, 24)


def test_sixteen_bits_of_grey_keep_their_tones() -> None:
    tones = np.linspace(0, 65535, 64).astype(np.uint16)
    data = file_of(Image.fromarray(np.tile(tones, (64, 1))))
    grey = np.asarray(decode_rgb(data, "image", (64, 64)))[0, :, 0]
    assert np.abs(grey.astype(int) - tones.astype(int) // 257).max() <= 1
    mask = np.asarray(decode_mask(data, (64, 64)))[0]
    assert np.abs(mask.astype(int) - tones.astype(int) // 257).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_a_picture_is_read(mode: str) -> None:
    data = file_of(Image.new(mode, (16, 16)), "JPEG" if mode == "CMYK" else "PNG")
    assert decode_rgb(data, "image", (16, 16)).mode == "RGB"
    assert decode_mask(data, (16, 16)).mode == "L"


def test_a_mask_with_alpha_is_white_where_it_is_transparent() -> None:
    picture = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask = decode_mask(file_of(picture), (64, 64))
    assert (mask.mode, mask.getpixel((8, 8)), mask.getpixel((56, 8))) == ("L", 255, 0)


def test_a_mask_that_is_opaque_everywhere_is_white_where_it_is_light() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    picture.paste((255, 255, 255, 255), (32, 0, 64, 64))
    mask = decode_mask(file_of(picture), (64, 64))
    assert (mask.getpixel((8, 8)), mask.getpixel((56, 8))) == (0, 255)


def test_a_mask_without_alpha_is_white_where_it_is_light() -> None:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste(WHITE, (0, 0, 32, 64))
    mask = decode_mask(file_of(picture), (64, 64))
    assert (mask.mode, mask.getpixel((8, 8)), mask.getpixel((56, 8))) == ("L", 255, 0)


def test_a_mask_stays_black_and_white_when_it_is_resized() -> None:
    picture = Image.new("L", (64, 64), 0)
    picture.paste(255, (0, 0, 31, 64))
    assert set(np.unique(np.asarray(decode_mask(file_of(picture), (128, 96))))) == {0, 255}
