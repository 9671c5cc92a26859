"""Numbers, bodies and pictures of absurd sizes: refused at once, and nothing dies of them."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
import zlib
from typing import Any

import psutil
import pytest

from tests.attacks.conftest import CANARY, House, named
from tests.stored import png

NUMBERS: dict[str, dict[str, Any]] = {
    "a milliard images": {"n": 10**9},
    "2^63 images": {"n": 2**63},
    "minus one image": {"n": -1},
    "images in floating point": {"n": 1e300},
    "a milliard pixels": {"width": 10**9, "height": 8},
    "2^64 pixels": {"size": f"{2**64}x8"},
    "digits without end": {"size": "9" * 4000 + "x8"},
    "digits of elsewhere": {"size": "٥١٢x٥١٢"},
    "four thousand digits": {"seed": 10**4000},
    "a milliard steps": {"steps": 10**9},
    "guidance beyond reason": {"cfg_scale": 1e308},
    "a strength below nothing": {"strength": -1e9, "seed": -2},
    "a deadline in the past": {"deadline": -5},
    "a timeout of ages": {"timeout": -1e308},
    "a compression of a million": {"output_compression": 10**6},
    "previews without end": {"partial_images": 10**6, "stream": True},
    "an enlargement of a thousand": {"upscale": 1000},
    "a grace of ages": {"on_hang_up": "grace:99999999999"},
    "a prompt of 900,000 letters": {"prompt": "p" * 900_000},
    "a negative prompt of 900,000 letters": {"negative_prompt": "p" * 900_000},
    "a list for a number": {"n": [1] * 10_000},
    "an object for a text": {"prompt": {"prompt": {}}},
    "a truth for a number": {"width": True},
}


@pytest.mark.parametrize("fields", **named(NUMBERS))
def test_absurd_numbers_are_refused_at_once(keyed: House, fields: dict[str, Any]) -> None:
    with keyed.client("ann") as client:
        began = time.monotonic()
        answer = client.post("/v1/images/generations", json={"prompt": "x", **fields})
        took = time.monotonic() - began
    assert answer.status_code == 400, answer.text
    assert took < 3


QUERIES = {
    "a page of a milliard": "/jobs?limit=1000000000",
    "a page below nothing": "/jobs?limit=-1",
    "a page of words": "/jobs?limit=all",
    "no number in time": "/jobs?since=nan&limit=0",
    "a cursor of SQL": "/jobs?cursor=1%20OR%201",
    "a cursor beyond 64 bits": "/jobs?cursor=99999999999999999999999",
    "days without end": "/stats?days=1e400",
    "days below nothing": "/stats?days=-1",
    "a status that is none": "/jobs?status=any",
    "words without end": "/jobs?q=" + "w" * 5000,
    "no boolean": "/jobs?favourite=perhaps",
}


@pytest.mark.parametrize("path", **named(QUERIES))
def test_absurd_questions_are_refused(keyed: House, path: str) -> None:
    with keyed.client("ann") as client:
        assert client.get(path).status_code == 400


BODIES = {
    "nested 100,000 deep": b"[" * 100_000,
    "objects nested 50,000 deep": b'{"a":' * 50_000,
    "no end": b'{"prompt": "x"',
    "not a number": b'{"prompt": "x", "n": NaN}',
    "beyond floating point": b'{"prompt": "x", "n": 1e400}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "half a pair": b'{"prompt": "\\ud800"}',
    "compressed, a bomb": gzip.compress(b'{"prompt": "' + b"x" * 30_000_000 + b'"}'),
    "MessagePack": b"\x81\xa6prompt\xa1x",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "YAML": b"!!python/object/apply:os.system ['true']",
    "XML with entities": b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>',
    "a list": b'[{"prompt": "x"}]',
    "nothing": b"",
    "a mark of order": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("body", **named(BODIES))
def test_absurd_bodies_are_refused(keyed: House, body: bytes) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with keyed.client("ann") as client:
        for route in ("/v1/images/generations", "/generate", "/jobs", "/sdapi/v1/txt2img"):
            answer = client.post(route, content=body, headers=headers)
            assert answer.status_code in (400, 413), (route, answer.text)


def chunk(name: bytes, content: bytes) -> bytes:
    head = struct.pack(">I", len(content)) + name + content
    return head + struct.pack(">I", zlib.crc32(name + content))


def black(side: int) -> bytes:
    """A whole PNG of one colour: small as a file, `side` squared in memory."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side * 3)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


PICTURES = {
    "a PNG of 9000 squared": black(9000),
    "a PNG of 2^31 squared": png(2**31 - 1, 2**31 - 1),
    "a PNG of no size": png(0, 0),
    "a PNG without pixels": png(64, 64)[:20],
    "the first bytes of a PNG": b"\x89PNG\r\n\x1a\n",
    "a JPEG cut short": b"\xff\xd8\xff\xe0" + b"\0" * 10,
    "a JPEG whose parts lead in a circle": b"\xff\xd8\xff\xe1\x00\x00" * 100,
    "a WebP that lies about its length": b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\0" * 40,
    "a RIFF that is no WebP": b"RIFF\x10\0\0\0WAVEfmt ",
    "a GIF": b"GIF89a\x01\0\x01\0\0\0\0",
    "a TIFF": b"II*\0" + b"\0" * 100,
    "a BMP": b"BM" + b"\0" * 100,
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a PDF": b"%PDF-1.7",
    "a PostScript": b"%!PS-Adobe-3.0",
    "a FITS": b"SIMPLE  =                    T",
    "a pickle": b"\x80\x04\x95",
    "text": b"file:///etc/passwd",
    "nothing": b"",
    "a PNG with EXIF that points beyond": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))
    + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("picture", **named(PICTURES))
def test_absurd_pictures_are_refused(keyed: House, picture: bytes) -> None:
    workers = [worker.pid for worker in keyed.gateway.workers()]
    with keyed.client("ann") as client:
        form = client.post("/v1/images/edits", files={"image": picture}, data={"prompt": CANARY})
        assert form.status_code == 400, form.text
        text = base64.b64encode(picture).decode()
        body = {"prompt": CANARY, "init_images": [text]}
        assert client.post("/sdapi/v1/img2img", json=body).status_code == 400
    assert [worker.pid for worker in keyed.gateway.workers()] == workers


FORMS = {
    "no boundary": ("multipart/form-data", b"x"),
    "an empty boundary": ("multipart/form-data; boundary=", b"x"),
    "a boundary of 10,000": (f"multipart/form-data; boundary={'b' * 10_000}", b"x"),
    "no end": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="a"',
    ),
    "2000 parts": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 2000 + b"--b--\r\n",
    ),
    "a charset that is none": (
        "multipart/form-data; boundary=b",
        (
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n'
            b"Content-Type: text/plain; charset=rot13\r\n\r\nx\r\n--b--\r\n"
        ),
    ),
    "a part without a name": (
        "multipart/form-data; boundary=b",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    ),
}


@pytest.mark.parametrize(("kind", "body"), **named(FORMS))
def test_absurd_forms_are_refused(keyed: House, kind: str, body: bytes) -> None:
    with keyed.client("ann") as client:
        answer = client.post("/v1/images/edits", content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 413), answer.text


def test_the_server_is_well_and_no_larger(keyed: House) -> None:
    """After all of the above."""
    process = psutil.Process(keyed.gateway.process.pid)
    assert process.memory_info().rss < 700e6
    with keyed.client("ann") as client:
        answer = client.post("/v1/images/generations", json={"prompt": "x", "n": 1})
    assert answer.status_code == 200
    assert json.loads(answer.text)["data"]
