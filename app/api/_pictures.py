"""Pictures as clients send them: by what their bytes say, not by what is said about them."""

from __future__ import annotations

import binascii
import io
import struct

import imagesize
import pybase64

from app.domain.errors import InvalidRequest
from app.domain.request import MAX_INPUT_PIXELS

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_ORIENTATION = 0x0112
_PNG_COLOUR_TYPE, _WITH_ALPHA = 25, (b"\x04", b"\x06")
"""Where a PNG says what its pixels are made of, and the kinds with an alpha channel."""


def checked(data: bytes, param: str) -> bytes:
    """The same bytes, if they begin as a PNG, JPEG or WebP does. Raises InvalidRequest."""
    if not data.startswith(_MAGIC) or (data.startswith(b"RIFF") and data[8:12] != b"WEBP"):
        raise InvalidRequest(f"{param} must be a PNG, JPEG or WebP.", param=param)
    return data


def upright_size(data: bytes, param: str) -> tuple[int, int]:
    """Width and height in pixels, as its EXIF says to turn it; nothing is decoded.

    Raises InvalidRequest, also for a picture too large to be decoded safely.
    """
    try:
        width, height = imagesize.get(io.BytesIO(data))  # turns JPEGs
        if _lies_on_its_side(data):
            width, height = height, width
    except Exception:  # a damaged header raises whatever its parser stumbles over
        width = height = 0
    if width < 1 or height < 1:
        raise InvalidRequest(f"{param} is not a readable PNG, JPEG or WebP.", param=param)
    if width * height > MAX_INPUT_PIXELS:
        most = MAX_INPUT_PIXELS // 2**20
        raise InvalidRequest(f"{param} has more than {most} megapixels.", param=param)
    return width, height


def _lies_on_its_side(data: bytes) -> bool:
    """Whether the EXIF of a PNG or WebP asks for a quarter turn (orientations 5 to 8)."""
    if data.startswith(_MAGIC[0]):
        exif = _chunk(data, 8, b"eXIf", ">", before=0, after=4)
    elif data.startswith(b"RIFF"):
        exif = _chunk(data, 12, b"EXIF", "<", before=4, after=0).removeprefix(b"Exif\0\0")
    else:
        return False
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return False
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(entries):  # tag, type, count and value of each, in twelve bytes
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return 5 <= int(value) <= 8
    return False


def _chunk(data: bytes, start: int, name: bytes, order: str, *, before: int, after: int) -> bytes:
    """The content of a named chunk of a PNG (length, name, content, sum) or WebP (name, length,
    content, padded to even); empty when there is none."""
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(f"{order}I", data, start + before)
        found = data[start + 4 - before : start + 8 - before]
        if found == name:
            return data[start + 8 : start + 8 + length]
        start += 8 + length + after + (length % 2 if before else 0)
    return b""


def from_base64(text: str, param: str) -> bytes:
    """A picture out of JSON, with or without `data:…,` before it. Raises InvalidRequest."""
    encoded = text.rpartition(",")[2]
    try:
        data = pybase64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{param} must be a picture in base64.", param=param) from error
    return checked(data, param)


def to_base64(data: bytes) -> str:
    encoded: bytes = pybase64.b64encode(data)
    return encoded.decode("ascii")


def without_alpha(data: bytes, param: str) -> bytes:
    """The same bytes, if they are no PNG with an alpha channel. Raises InvalidRequest."""
    if data.startswith(_MAGIC[0]) and data[_PNG_COLOUR_TYPE : _PNG_COLOUR_TYPE + 1] in _WITH_ALPHA:
        raise InvalidRequest(
            f"{param} must have no alpha channel: white is painted anew, black is kept.",
            param=param,
        )
    return data
