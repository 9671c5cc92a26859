"""Finished pictures: kept on disk, the newest also in memory, and never lost to a full disk.

Promised: once `put` returns, `get` answers; a file is complete or absent; ids that are no ids reach
no file; what the disk refuses is answered from memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from ulid import ULID

from app.domain.errors import NotFound
from app.store.image_files import ImageFiles, StoredImage

PICTURE = StoredImage(b"\x89PNG" + bytes(range(200)), "image/png")


def new_id() -> str:
    return str(ULID())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    return ImageFiles(tmp_path / "images", memory_bytes=10_000)


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
async def test_a_picture_comes_back_as_it_was_also_after_a_restart(
    tmp_path: Path, media_type: str
) -> None:
    picture, image_id = StoredImage(PICTURE.data, media_type), new_id()
    images = ImageFiles(tmp_path, memory_bytes=10_000)
    await images.put(image_id, picture)
    assert await images.get(image_id) == picture
    assert await ImageFiles(tmp_path, memory_bytes=10_000).get(image_id) == picture


async def test_many_pictures_at_once_do_not_mix(images: ImageFiles, tmp_path: Path) -> None:
    pictures = {new_id(): StoredImage(os.urandom(2000), "image/png") for _ in range(40)}
    await asyncio.gather(*(images.put(*item) for item in pictures.items()))
    for image_id, picture in pictures.items():
        assert await images.get(image_id) == picture
    assert [path.suffix for path in files_in(tmp_path)] == [".png"] * 40


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        "..",
        "../../../../etc/passwd",
        "/etc/passwd",
        "01JZZZZZZZZZZZZZZZZZZZZZZZ/../x",
        "01jzzzzzzzzzzzzzzzzzzzzzzz",
        "01JZZZZZZZZZZZZZZZZZZZZZZZ\n",
        "01JZZZZZZZZZZZZZZZZZZZZZZ\x00",
        "../" + "A" * 23,
        "A" * 25,
        "A" * 27,
        "\u0660" * 26,
    ],
)
async def test_what_is_no_id_is_not_found(images: ImageFiles, image_id: str) -> None:
    with pytest.raises(NotFound) as caught:
        await images.get(image_id)
    assert caught.value.param == "id"
    assert image_id not in caught.value.message or not image_id


async def test_a_file_outside_of_the_folder_cannot_be_reached(tmp_path: Path) -> None:
    inside = tmp_path / "images"
    folder = "0" * 26
    (inside / "ET" / folder).mkdir(parents=True)
    (tmp_path / "SECRET.png").write_bytes(b"secret")
    ways = ("../../SECRET", "../SECRET", f"{folder}/../../../SECRET", str(tmp_path / "SECRET"))
    for image_id in ways:
        with pytest.raises(NotFound):
            await ImageFiles(inside, memory_bytes=10).get(image_id)


async def test_a_picture_that_was_never_put_is_not_found(images: ImageFiles) -> None:
    with pytest.raises(NotFound):
        await images.get(new_id())


async def test_half_a_file_is_never_taken_for_a_picture(images: ImageFiles, tmp_path: Path) -> None:
    image_id = new_id()
    await images.put(image_id, PICTURE)
    (whole,) = files_in(tmp_path)
    whole.rename(whole.with_suffix(".part"))
    with pytest.raises(NotFound):
        await ImageFiles(tmp_path / "images", memory_bytes=10_000).get(image_id)


async def test_a_disk_that_refuses_costs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").write_text("a file where a folder should be")
    images = ImageFiles(tmp_path / "images", memory_bytes=10_000)
    image_id = new_id()
    with caplog.at_level(logging.WARNING):
        await images.put(image_id, PICTURE)
    assert await images.get(image_id) == PICTURE
    assert image_id in caplog.text
    assert str(tmp_path) not in caplog.text


async def test_a_disk_that_fills_up_half_way_leaves_no_picture_under_its_name(
    images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    image_id = new_id()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        await images.put(image_id, PICTURE)
    assert await images.get(image_id) == PICTURE
    assert ".png" not in {path.suffix for path in files_in(tmp_path)}


async def test_memory_is_bounded_and_the_newest_stay_in_it(tmp_path: Path) -> None:
    images = ImageFiles(tmp_path, memory_bytes=1000)
    ids = [new_id() for _ in range(10)]
    for image_id in ids:
        await images.put(image_id, StoredImage(bytes(300), "image/png"))
    for path in files_in(tmp_path):
        path.unlink()
    for image_id in ids[-3:]:
        assert (await images.get(image_id)).data == bytes(300)
    for image_id in ids[:-3]:
        with pytest.raises(NotFound):
            await images.get(image_id)


async def test_the_newest_picture_is_held_however_large_it_is(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("no folder")
    images = ImageFiles(tmp_path / "images", memory_bytes=10)
    first, second = new_id(), new_id()
    await images.put(first, PICTURE)
    await images.put(second, PICTURE)
    assert await images.get(second) == PICTURE
    with pytest.raises(NotFound):
        await images.get(first)


async def test_a_picture_put_twice_counts_once_in_memory(tmp_path: Path) -> None:
    images = ImageFiles(tmp_path, memory_bytes=1000)
    older, twice = new_id(), new_id()
    await images.put(older, StoredImage(bytes(300), "image/png"))
    for _ in range(3):
        await images.put(twice, StoredImage(bytes(300), "image/png"))
    for path in files_in(tmp_path):
        path.unlink()
    assert (await images.get(older)).data == bytes(300)
