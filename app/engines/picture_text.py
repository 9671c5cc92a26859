"""The texts inside picture files: international text chunks in a PNG, EXIF and XMP in JPEG and WebP.

A PNG has one chunk for each name. In the others EXIF holds what other programs look for (the prompt
as description, A1111's text as comment), and XMP all of our own names as one JSON text, because EXIF
has no room for names and XML none for every character.
"""

from __future__ import annotations

import html
import io
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from PIL import ExifTags, Image

from app.domain.errors import InvalidRequest
from app.domain.picture_facts import PARAMETERS, read_parameters

JPEG_ROOM = 65_504
"""Bytes of EXIF, and of XMP, that a JPEG can hold."""

_DESCRIPTION = 0x010E
_COMMENT = 0x9286

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:easel="urn:easel:picture">'
    "<easel:facts>%s</easel:facts>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_XMP_FACTS = re.compile(rb"easel:facts(?:>([^<]*)<|=\"([^\"]*)\"|='([^']*)')")
"""As written here, or turned into an attribute by a program that wrote the packet anew."""

_NOT_IN_XML = {ord(mark): f"\\u{ord(mark):04x}" for mark in "&<>\x7f\ufffe\uffff"}
"""What JSON text may hold and XML text may not, as JSON escapes it."""


class Told(msgspec.Struct, frozen=True):
    """What a file tells: its kind ("png", "jpeg", "webp"), its size, and the rest by name."""

    format: str
    width: int
    height: int
    facts: dict[str, str]


# -- written ---------------------------------------------------------------------------------------


def png_chunks(about: Mapping[str, str]) -> list[bytes]:
    """A chunk for each text (PNG specification, iTXt)."""
    return [_chunk(key, value) for key, value in about.items()]


def _chunk(key: str, value: str) -> bytes:
    # Keyword, NUL, not compressed (two zero bytes), no language, no translated keyword, UTF-8 text.
    body = b"iTXt" + key.encode("latin-1") + b"\0\0\0\0\0" + value.encode()
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def exif_and_xmp(about: Mapping[str, str], room: int) -> dict[str, bytes]:
    """Options of Pillow's `save`. What has no room is left out as a whole: half a prompt would lie."""
    comment = b"UNICODE\0" + about.get(PARAMETERS, "").encode("utf-16-be")
    ways = (_exif(about.get("prompt", ""), comment), _exif("", comment))
    exif = next((one for one in ways if len(one) <= room), None)
    own = {name: text for name, text in about.items() if name != PARAMETERS}
    facts = msgspec.json.encode(own).decode().translate(_NOT_IN_XML)
    xmp = (_XMP % facts).encode()
    return {"exif": exif or b"", "xmp": xmp if len(xmp) <= room else b""}


def _exif(description: str, comment: bytes) -> bytes:
    exif = Image.Exif()
    if description:
        exif[_DESCRIPTION] = description.encode()
    exif.get_ifd(ExifTags.IFD.Exif)[_COMMENT] = comment
    return exif.tobytes()


# -- read ------------------------------------------------------------------------------------------


def read(data: bytes) -> Told:
    """What a PNG, JPEG or WebP of any program tells; `facts` is empty if it is nothing we know.

    The pixels are not decoded. Names and texts are a stranger's: mind where they are shown.
    Raises InvalidRequest: it is no such picture.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow: too many pixels, odd EXIF
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            facts = _from_png(picture) if picture.format == "PNG" else _from_xmp_or_exif(picture)
    except Exception as error:  # as for `image_codec.decode`
        raise InvalidRequest("This is no PNG, JPEG or WebP that can be read.") from error
    return Told(str(picture.format).lower(), picture.width, picture.height, facts)


def _from_png(picture: Image.Image) -> dict[str, str]:
    texts = {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
    text = texts.pop(PARAMETERS, "")
    if not text or texts.keys() >= {"seed", "model"}:  # ours
        texts.pop("XML:com.adobe.xmp", None)
        return texts
    return read_parameters(text)[0]


def _from_xmp_or_exif(picture: Image.Image) -> dict[str, str]:
    if found := _XMP_FACTS.search(picture.info.get("xmp", b"")):
        with suppress(ValueError):  # ours is JSON in UTF-8
            text = html.unescape(b"".join(part or b"" for part in found.groups()).decode())
            return msgspec.json.decode(text, type=dict[str, str])
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(_COMMENT, b"")
    facts, drawn = read_parameters(_comment_text(comment))
    return facts if drawn else {}  # any camera may write a comment


def _comment_text(raw: object) -> str:
    if not isinstance(raw, bytes):
        return str(raw)
    code, text = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        # A1111 writes the big end first, others as the rest of their file; the text is Latin enough
        # to have its zeros on one side.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    return (text if code in (b"ASCII\0\0\0", bytes(8)) else raw).decode("utf-8", "replace")
