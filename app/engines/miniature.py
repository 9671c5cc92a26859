"""A picture in small, for places that show few pixels: terminals."""

from __future__ import annotations

import io
import warnings

import msgspec
from PIL import Image

from app.domain.errors import InvalidRequest
from app.domain.request import MAX_INPUT_PIXELS


class Miniature(msgspec.Struct, frozen=True):
    """`rgb` is a byte each of red, green and blue, row by row; `png` is the same as a file."""

    width: int
    height: int
    rgb: bytes
    png: bytes


def miniature(data: bytes, width: int, height: int) -> Miniature:
    """A PNG, JPEG or WebP at the largest size that fits into so many pixels.

    Raises InvalidRequest: it is no such picture, or a damaged or far too large one.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow: too many pixels, odd EXIF
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            if picture.width * picture.height > MAX_INPUT_PIXELS:
                raise ValueError("too many pixels")
            times = min(width / picture.width, height / picture.height)
            size = max(1, round(picture.width * times)), max(1, round(picture.height * times))
            small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    except Exception as error:  # as for `image_codec.decode`
        raise InvalidRequest("This is no PNG, JPEG or WebP that can be read.") from error
    file = io.BytesIO()
    small.save(file, "PNG")
    return Miniature(*small.size, small.tobytes(), file.getvalue())
