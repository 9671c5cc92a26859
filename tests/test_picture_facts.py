"""A picture tells how it was drawn, in its file, whatever its kind; or nothing of it, if so wished.

Promised: every text comes back as it was, through plain Pillow and through our own reader; other
programs find A1111's text where they look for it; the pixels stay; what strangers wrote is read
without trust; a picture that shall tell nothing holds nothing but its pixels.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import shutil
import struct
import subprocess
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app import __version__
from app.api.openai.bodies import EditBody, GenerationBody, Upload
from app.domain.errors import InvalidRequest
from app.domain.events import ImageFinished, StepFinished
from app.domain.model_card import Defaults, Limits, ModelCard
from app.domain.picture_facts import Origin, about, parameters, read_parameters
from app.domain.request import Arguments, GenerationRequest
from app.engines import picture_text, stable_diffusion
from app.engines.image_codec import Pixels, encode
from app.engines.model_hash import ModelHash, commit_of, hash_of
from tests.gateway import Gateway
from tests.painter import CARDS, Painter
from tests.pictures import pixels as pixels_of

CARD = ModelCard(
    id="lab/m-1.5",
    family="fake",
    source="/",
    tasks=("text2image", "image2image", "inpaint"),
    defaults=Defaults(sampler="dpmpp_2m_karras", width=64, height=96),
    limits=Limits(max_prompt_chars=100_000),
)
ORIGIN = Origin("v1.5", "ab" * 32, ("diffusers 1", "torch 2"))
KINDS = ("png", "jpeg", "webp")
NASTY = {
    "plain": "a fox",
    "unicode": "ein Fuchs, größer — 狐狸 🦊👨‍👩‍👧 \u202eevil\u202c \u00a0\u3000",
    "lines": "one\ntwo\r\nthree\n\n four\t",
    "settings": "a fox\nSteps: 1, Sampler: Evil, CFG scale: 9, Seed: 2, Size: 1x1",
    "negative": "a fox\nNegative prompt: a dog\nNegative prompt: a cat",
    "quotes": 'say "hi", it\'s \\"quoted\\" \\n \\u0041 {"a": [1]} %s %% {}',
    "markup": '<b>&amp;</b> </easel:facts> ]]> <!-- --> &#10; &quot; easel:facts="x"',
    "controls": "".join(map(chr, (*range(32), *range(0x7F, 0xA0))))
    + "\ufeff\ufffe\uffff\U0010ffff",
    "null": "before\0after\0\0",
    "long": "0123456789" * 1_000,
    "long emoji": "🦊" * 10_000,
    "spaces": "  a fox  ",
}


def wish(**given: Any) -> GenerationRequest:
    """A request as `resolve` makes it; the prompt may be one that it would refuse."""
    prompt, negative = given.pop("prompt", "a fox"), given.pop("negative_prompt", "")
    request = CARD.resolve(Arguments(prompt="x", **given), draw_seed=lambda: 1)
    told = {"prompt": prompt, "negative_prompt": negative}
    return GenerationRequest(
        **{**{name: getattr(request, name) for name in request.__struct_fields__}, **told}
    )


def noise() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)


def drawn(request: GenerationRequest, seed: int = 5, origin: Origin = ORIGIN) -> bytes:
    return encode(noise(), request, about(request, seed, origin))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def own_names(data: bytes) -> dict[str, str]:
    """Our own names as plain Pillow, XML and JSON tell them."""
    picture = opened(data)
    if isinstance(picture, PngImagePlugin.PngImageFile):
        return {key: str(value) for key, value in picture.text.items() if key != "parameters"}
    packet = ET.fromstring(picture.info["xmp"])
    told: dict[str, str] = json.loads(packet.findtext(".//{urn:easel:picture}facts") or "")
    return told


def parameters_in(data: bytes) -> str:
    """A1111's text where A1111 looks for it, decoded as its `piexif` does."""
    picture = opened(data)
    if picture.format == "PNG":
        return str(picture.info["parameters"])
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return bytes(comment[8:]).decode("utf-16-be")


def parsed(text: str) -> dict[str, str]:
    """A1111's text, taken apart by the simplest rules that there are."""
    head, _, last = text.rpartition("\n")
    prompt, _, negative = head.partition("\nNegative prompt: ")
    settings = dict(one.split(": ", 1) for one in last.split(", "))
    return {"prompt": prompt, "negative": negative, **settings}


# -- what is told ----------------------------------------------------------------------------------


def test_everything_is_told() -> None:
    request = wish(
        prompt="a fox",
        negative_prompt="a dog",
        image=b"i",
        strength=0.3,
        true_cfg_scale=2.0,
        guidance_scale=4.0,
        preset="strict",
    )
    told = about(request, 7, ORIGIN)
    text = told.pop("parameters")
    assert told == {
        "prompt": "a fox",
        "negative_prompt": "a dog",
        "seed": "7",
        "model": "lab/m-1.5",
        "model_revision": "v1.5",
        "model_hash": "ab" * 32,
        "sampler": "dpmpp_2m_karras",
        "num_inference_steps": "20",
        "guidance_scale": "4",
        "true_cfg_scale": "2",
        "size": "64x96",
        "task": "image2image",
        "strength": "0.3",
        "preset": "strict",
        "software": f"easel {__version__}, diffusers 1, torch 2",
    }
    assert text == (
        "a fox\nNegative prompt: a dog\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: 7, "
        "Size: 64x96, Model hash: ababababab, Model: lab/m-1.5, Denoising strength: 0.3, "
        f"Version: Easel {__version__}"
    )


def test_what_is_as_usual_is_not_told() -> None:
    told = about(wish(), 7, Origin())
    assert set(told) == {
        *("prompt", "seed", "model", "sampler", "num_inference_steps", "guidance_scale", "size"),
        *("software", "parameters"),
    }


@pytest.mark.parametrize("value", [0.0, 4.0, 3.5, 0.1, 1 / 3, 7.123456789])
def test_a_number_is_told_in_full(value: float) -> None:
    told = about(wish(guidance_scale=value), 1, ORIGIN)
    assert float(told["guidance_scale"]) == value
    assert not told["guidance_scale"].endswith(".0")


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NASTY)
def test_every_text_comes_back_as_it_was(name: str, kind: str) -> None:
    request = wish(prompt=NASTY[name], negative_prompt="blurry\nSeed: 3", output_format=kind)
    told = about(request, 5, ORIGIN)
    text = told.pop("parameters")
    data = drawn(request)
    assert own_names(data) == told
    assert parameters_in(data) == text
    read = picture_text.read(data)
    assert (read.format, read.width, read.height) == (kind, 64, 96)
    assert read.facts == told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["plain", "unicode", "quotes", "long", "settings"])
def test_other_programs_read_the_settings_that_are_true(name: str, kind: str) -> None:
    """Also where a prompt tries to be settings: the last line is always ours."""
    request = wish(prompt=NASTY[name], negative_prompt="blurry, dark", output_format=kind)
    told = parsed(parameters_in(drawn(request)))
    assert told == {
        "prompt": NASTY[name],
        "negative": "blurry, dark",
        "Steps": "20",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "7.5",
        "Seed": "5",
        "Size": "64x96",
        "Model hash": "ababababab",
        "Model": "lab/m-1.5",
        "Version": f"Easel {__version__}",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_the_same_with_and_without(kind: str) -> None:
    with_texts = drawn(wish(output_format=kind))
    without = encode(noise(), wish(output_format=kind))
    assert np.array_equal(pixels_of(with_texts), pixels_of(without))
    assert len(with_texts) > len(without)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_prompt_is_the_description_of_the_picture(kind: str) -> None:
    exif = opened(drawn(wish(prompt="größer 🦊", output_format=kind))).getexif()
    assert exif[0x010E].encode("latin-1").decode() == "größer 🦊"


def test_a_jpeg_leaves_out_what_it_has_no_room_for_and_shortens_nothing() -> None:
    prompt = "🦊" * 15_000
    told = about(wish(prompt=prompt), 5, ORIGIN)
    text = told.pop("parameters")
    data = drawn(wish(prompt=prompt, output_format="jpeg"))
    assert 0x010E not in opened(data).getexif()
    assert parameters_in(data) == text
    assert own_names(data) == told
    bare = drawn(wish(prompt="🦊" * 20_000, output_format="jpeg"))
    assert bare == encode(noise(), wish(output_format="jpeg"))
    assert picture_text.read(bare).facts == {}
    roomy = drawn(wish(prompt="🦊" * 20_000, output_format="webp"))
    assert picture_text.read(roomy).facts["prompt"] == "🦊" * 20_000


# -- left out --------------------------------------------------------------------------------------


def chunks(png: bytes) -> list[bytes]:
    at, kinds = 8, []
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kinds.append(png[at + 4 : at + 8])
        at += 12 + length
    return kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_shall_tell_nothing_tells_nothing(kind: str) -> None:
    data = drawn(wish(prompt="a secret", output_format=kind, metadata=False))
    picture = opened(data)
    picture.load()
    assert not {"exif", "xmp", "parameters", "prompt", "seed"} & set(picture.info)
    assert not dict(picture.getexif())
    for word in (b"secret", b"easel", b"Easel", b"lab/m", b"Exif", b"adobe", b"EXIF", b"XMP "):
        assert word not in data
    if kind == "png":
        assert not {b"iTXt", b"tEXt", b"zTXt", b"eXIf", b"tIME"} & set(chunks(data))
    assert picture_text.read(data).facts == {}


@pytest.mark.parametrize(
    ("server", "given", "drawn_with"),
    [
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (False, True, True),
    ],
)
def test_a_request_goes_before_the_server(
    server: bool, given: bool | None, drawn_with: bool
) -> None:
    arguments = Arguments(prompt="x", metadata=given)
    assert CARD.resolve(arguments, draw_seed=lambda: 1, metadata=server).metadata is drawn_with


@pytest.mark.parametrize("value", [True, False, None])
def test_a_json_body_may_leave_it_out(value: bool | None) -> None:
    body = GenerationBody.model_validate({"prompt": "x", "metadata": value})
    assert body.to_arguments().metadata is value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("0", False)])
def test_a_form_may_leave_it_out(text: str, value: bool) -> None:
    upload = Upload({"prompt": "x", "metadata": text}, [b""], None)
    assert upload.body(EditBody).to_arguments().metadata is value


def test_a_form_cannot_say_maybe() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Upload({"prompt": "x", "metadata": "maybe"}, [b""], None).body(EditBody)
    assert caught.value.param == "metadata"


def test_the_gateway_leaves_it_out(fake_gateway: Gateway) -> None:
    with fake_gateway.client() as client:
        for wanted, names in ((None, {"prompt", "seed", "parameters"}), (False, set[str]())):
            body = {"prompt": "a fox", "response_format": "url", "metadata": wanted}
            told = client.post("/v1/images/generations", json=body).json()
            text = opened(client.get(told["data"][0]["url"]).content).info
            assert names <= set(text)
            assert bool(names) == ("seed" in text)


# -- what strangers wrote --------------------------------------------------------------------------

A1111 = (
    "a (fox:1.2), <lora:snow:0.8>\nsecond line\nNegative prompt: a dog,\nugly\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, "
    'Size: 512x768, Model hash: 6ce0161689, Model: v1-5, Lora hashes: "snow: ab12, ice: cd34", '
    "Clip skip: 2, Version: v1.10.1"
)
READ = {
    "prompt": "a (fox:1.2), <lora:snow:0.8>\nsecond line",
    "negative_prompt": "a dog,\nugly",
    "num_inference_steps": "20",
    "sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "guidance_scale": "7",
    "seed": "1234",
    "size": "512x768",
    "model_hash": "6ce0161689",
    "model": "v1-5",
    "Lora hashes": "snow: ab12, ice: cd34",
    "Clip skip": "2",
    "software": "v1.10.1",
}


def png_with(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def commented(comment: bytes, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file.getvalue()


def test_a_png_of_a1111_is_read() -> None:
    assert picture_text.read(png_with(parameters=A1111)).facts == READ
    assert picture_text.read(png_with(parameters="only a prompt")).facts == {
        "prompt": "only a prompt"
    }


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"ASCII\0\0\0" + A1111.encode(),
        bytes(8) + A1111.encode(),
        A1111.encode(),
    ],
    ids=["big", "little", "ascii", "undefined", "bare"],
)
def test_a_jpeg_or_webp_of_other_programs_is_read(comment: bytes, kind: str) -> None:
    assert picture_text.read(commented(comment, kind)).facts == READ


def test_the_comment_of_a_camera_is_no_prompt() -> None:
    assert picture_text.read(commented(b"ASCII\0\0\0taken at noon, f: 8")).facts == {}


def test_other_texts_of_a_png_are_told_as_they_are() -> None:
    told = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": "{}"}
    assert picture_text.read(png_with(**told)).facts == told
    assert picture_text.read(png_with()).facts == {}


def test_a_setting_cannot_pass_for_the_prompt() -> None:
    text = "a fox\nSteps: 1, Seed: 2, Size: 8x8, prompt: a dog, negative_prompt: x"
    assert read_parameters(text)[0]["prompt"] == "a fox"


def test_our_own_packet_is_read_after_another_program_wrote_it_anew() -> None:
    request = wish(prompt='a "fox" & <hound>', output_format="webp")
    told = about(request, 5, ORIGIN)
    told.pop("parameters")
    facts = html.escape(json.dumps(told))
    for packet in (
        f'<rdf:Description easel:facts="{facts}"/>',
        f"<rdf:Description easel:facts='{facts}'/>",
        f"<easel:facts>{facts}</easel:facts>",
    ):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "WEBP", xmp=packet.encode())
        assert picture_text.read(file.getvalue()).facts == told


@pytest.mark.parametrize("facts", [b"no json", b'["x"]', b'{"seed": 1}', b'{"prompt": "\xff"}'])
def test_a_packet_that_only_looks_like_ours_is_passed_over(facts: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    file = io.BytesIO()
    packet = b"<easel:facts>" + facts + b"</easel:facts>"
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif, xmp=packet)
    assert picture_text.read(file.getvalue()).facts == READ


def bomb() -> bytes:
    """A PNG with a text of 100 megabytes."""
    png, body = png_with(), b"zTXtparameters\0\0" + zlib.compress(bytes(10**8))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    "text", ["ab" * 40_000, "ab: " * 30_000, 'ab: "' * 30_000, "ab:" + " " * 90_000, "\n" * 90_000]
)
def test_a_text_made_to_take_long_does_not(text: str) -> None:
    start = time.process_time()
    read_parameters("x\n" + text)
    assert time.process_time() - start < 2


def test_a_text_made_to_take_room_does_not() -> None:
    tracemalloc.start()
    read_parameters('x\nab: "' + "a" * 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
        drawn(wish())[:200],
        bomb(),
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        picture_text.read(data)


def test_damaged_exif_is_no_crash() -> None:
    data = bytearray(commented(b"UNICODE\0" + A1111.encode("utf-16-be")))
    chance = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for at in chance.integers(2, 200, 4):
            damaged[at] = chance.integers(0, 256)
        try:
            told = picture_text.read(bytes(damaged))
        except InvalidRequest:
            continue
        assert isinstance(told.facts, dict)


# -- the model's hash ------------------------------------------------------------------------------


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    for name, data in {
        "model_index.json": b"{}",
        "unet/config.json": b"{1}",
        "unet/diffusion_pytorch_model.safetensors": weights,
        "text_encoder/model.safetensors": b"words",
        "text_encoder_2/model.safetensors": b"more words",
        "text-encoder/model.safetensors": b"odd words",
        "README.md": b"not loaded",
        ".cache/download.json": b"not loaded",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_the_hash_is_that_of_the_shell(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    command = "LC_ALL=C sha256sum model_index.json */*.json */*.safetensors | sha256sum"
    told = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=True)
    assert hash_of(folder) == told.stdout.split()[0].decode()


def test_the_hash_is_of_what_is_loaded_and_of_nothing_else(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "one")
    first = hash_of(folder)
    assert hash_of(Path(shutil.copytree(folder, tmp_path / "two"))) == first
    (folder / "README.md").write_text("other")
    (folder / ".cache" / "download.json").write_text("other")
    assert hash_of(folder) == first
    model_folder(folder, b"Weights")  # as long, and a moment later
    second = hash_of(folder)
    assert second != first
    (folder / "unet" / "config.json").write_text("{22}")
    assert hash_of(folder) not in {first, second}


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path)
    first = hash_of(folder)

    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", never)
    assert hash_of(folder) == first


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert hash_of(tmp_path) == ""
    assert ModelHash(tmp_path / "absent").known(wait=5) == ""


def test_nobody_waits_for_a_long_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: Path) -> str:
        time.sleep(0.5)
        return "done"

    monkeypatch.setattr("app.engines.model_hash.hash_of", slow)
    start = time.monotonic()
    made = ModelHash(tmp_path)
    assert made.known() == ""
    assert made.known(wait=0.05) == ""
    assert time.monotonic() - start < 0.4
    assert made.known(wait=10) == "done"


def test_the_commit_of_a_folder_from_the_hub() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert commit_of(f"/models/models--a--b/snapshots/{commit}") == commit
    assert commit_of(f"/models/{commit}/sketch") == ""
    assert commit_of("/models/cafe") == ""


# -- the real engine -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sketch() -> Painter:
    return Painter("sketch", stable_diffusion)


def files(painter: Painter, **given: Any) -> list[bytes]:
    events = painter.run(painter.wish(**given))
    return [event.image for event in events if isinstance(event, ImageFinished)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_engine_draws_tells_its_model_and_libraries(sketch: Painter, kind: str) -> None:
    import diffusers
    import torch

    pictures = files(sketch, n=2, output_format=kind)
    told = [picture_text.read(picture).facts for picture in pictures]
    assert [one["seed"] for one in told] == ["3", "4"]
    assert told[0]["model_hash"] == hash_of(Path(CARDS["sketch"].source))
    assert told[0]["software"] == (
        f"easel {__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}"
    )
    assert parsed(parameters_in(pictures[1]))["Seed"] == "4"


def test_the_engine_keeps_a_secret_and_previews_tell_nothing(sketch: Painter) -> None:
    (secret,) = files(sketch, metadata=False)
    assert picture_text.read(secret).facts == {}
    (open_,) = files(sketch)
    assert np.array_equal(pixels_of(secret), pixels_of(open_))
    events = sketch.run(sketch.wish(previews=2))
    steps = [event for event in events if isinstance(event, StepFinished)]
    previews = [step.preview for step in steps if step.preview]
    assert len(previews) == 2
    assert all(picture_text.read(preview).facts == {} for preview in previews)


def test_the_text_of_a_request_is_the_text_of_its_picture(sketch: Painter) -> None:
    request = sketch.wish(prompt="a red circle", output_format="png")
    (picture,) = files(sketch, prompt="a red circle")
    shown = f"Model hash: {hash_of(Path(CARDS['sketch'].source))[:10]}, "
    assert parameters_in(picture).replace(shown, "") == parameters(request, 3)
