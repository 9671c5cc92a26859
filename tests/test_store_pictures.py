"""Pictures in a folder and in a bucket: whole or absent, stored once, swept, linked to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.domain.errors import NotFound
from app.store.blobs import Blobs, Folder, open_blobs
from app.store.database import Database
from app.store.errors import StorageFull, StoreUnavailable
from app.store.history import History
from app.store.jobs import JobStore, Picture
from app.store.links import Links
from app.store.pictures import PictureStore, StoredImage, Swept
from tests.s3 import Bucket
from tests.stored import finish, make_job, new_id, png

LATER = 2 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class House:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs
        self.clock = Clock()
        self.jobs = JobStore(database)
        self.store = PictureStore(database, blobs, memory_bytes=1, clock=self.clock)

    async def paint(self, data: bytes, media_type: str = "image/png") -> Picture:
        return await self.store.put(new_id(), 0, 7, StoredImage(data, media_type))

    async def keep(self, *pictures: Picture) -> list[str]:
        """Jobs that drew these pictures."""
        jobs = [make_job() for _ in pictures]
        for job, picture in zip(jobs, pictures, strict=True):
            await self.jobs.accept(job)
            await finish(self.jobs, job, picture=picture)
        await self.store.put("0", 0, 0, StoredImage(b"pushes the others out", "image/webp"))
        return [job.id for job in jobs]

    async def names(self) -> list[str]:
        found = [blob.name async for page in self.blobs.pages() for blob in page]
        return sorted(name for name in found if name.endswith(".png"))


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return open_blobs(tmp_path / "pictures")
    bucket: Bucket = request.getfixturevalue("bucket")
    return open_blobs(bucket.url, bucket.options)


@pytest.fixture
async def house(blobs: Blobs, tmp_path: Path) -> AsyncIterator[House]:
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        house = House(database, blobs)
        await house.store.open()
        yield house
        await house.store.close()


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
async def test_a_picture_comes_back_as_it_was(house: House, media_type: str) -> None:
    data = png(320, 200, os.urandom(5000))
    picture = await house.paint(data, media_type)
    digest = hashlib.sha256(data).hexdigest()
    assert (picture.digest, picture.bytes, picture.state) == (digest, len(data), "stored")
    assert (picture.width, picture.height) == (320, 200)
    await house.keep(picture)
    assert await house.store.get(picture.id) == StoredImage(data, media_type)


async def test_a_picture_is_there_before_its_row(house: House) -> None:
    image = StoredImage(png(content=b"x" * 100), "image/png")
    await house.store.put(image_id := new_id(), 0, 7, image)
    assert await house.store.get(image_id) is image


async def test_bytes_that_are_no_picture_are_kept_all_the_same(house: House) -> None:
    picture = await house.paint(b"\x89PNG\r\n\x1a\n")
    assert (picture.width, picture.height, picture.state) == (0, 0, "stored")


async def test_equal_pictures_are_stored_once(house: House) -> None:
    pictures = await asyncio.gather(*(house.paint(png(content=b"same")) for _ in range(8)))
    await house.keep(*pictures)
    assert len(await house.names()) == 1
    for picture in pictures:
        assert (await house.store.get(picture.id)).data == png(content=b"same")


@pytest.mark.parametrize("image_id", ["", "..", "../../easel.db", "a/b", "\0", "é", "x" * 5000])
async def test_what_is_no_id_reaches_no_file(house: House, image_id: str) -> None:
    with pytest.raises(NotFound):
        await house.store.get(image_id)


async def test_a_damaged_file_is_not_shown(house: House) -> None:
    picture = await house.paint(png(content=b"whole"))
    await house.keep(picture)
    name = (await house.names())[0]
    await house.blobs.delete([name])
    await house.blobs.put(name, png(content=b"other"))
    with pytest.raises(NotFound):
        await house.store.get(picture.id)


async def test_a_sweep_makes_rows_and_files_agree(house: House) -> None:
    kept, lost, orphan = [await house.paint(png(content=content)) for content in (b"1", b"2", b"3")]
    await house.keep(kept, lost)
    names = await house.names()
    await house.blobs.delete([name for name in names if lost.digest in name])
    await house.blobs.put("notes.png", b"not ours")
    assert await house.store.sweep() == Swept(0, [lost.id]), "the orphan is young"
    assert [orphan.digest in name for name in await house.names()].count(True) == 1
    house.clock.ahead = LATER
    swept = await house.store.sweep()
    assert swept == Swept(removed=2, missing=[])  # the orphan, and what `keep` put
    assert [name for name in await house.names() if "/" in name] == [
        name for name in names if kept.digest in name
    ]
    assert "notes.png" in await house.names()
    assert (await house.store.get(kept.id)).data == png(content=b"1")
    with pytest.raises(NotFound):
        await house.store.get(lost.id)


async def test_a_picture_drawn_again_is_young_again(house: House) -> None:
    if isinstance(house.blobs, Folder):
        await house.paint(png(content=b"old"))
        file = next((house.blobs._root).rglob("*.png"))
        os.utime(file, (1, 1))
    await house.paint(png(content=b"old"))
    house.store._pending.clear()  # as seen by another process
    assert await house.store.sweep() == Swept(0, [])
    assert len(await house.names()) == 1


async def test_another_database_sweeps_nothing_away(house: House, tmp_path: Path) -> None:
    await house.keep(await house.paint(png(content=b"kept")))
    async with await Database.open(f"sqlite:///{tmp_path / 'other.db'}") as database:
        stranger = House(database, house.blobs)
        await stranger.store.open()
        stranger.clock.ahead = LATER
        with pytest.raises(StoreUnavailable):
            await stranger.store.sweep()
    assert len(await house.names()) == 1


async def test_an_empty_place_takes_nobody_s_pictures_for_lost(
    house: House, tmp_path: Path
) -> None:
    picture = await house.paint(png(content=b"kept"))
    await house.keep(picture)
    unmounted = House(house.database, open_blobs(tmp_path / "unmounted"))
    await unmounted.store.open()
    with pytest.raises(StoreUnavailable):
        await unmounted.store.sweep()
    assert (await house.store.get(picture.id)).data == png(content=b"kept")


async def test_a_picture_that_is_being_drawn_again_is_not_deleted_under_it(house: House) -> None:
    data = png(content=b"twice")
    job_id = (await house.keep(await house.paint(data)))[0]
    again = await house.paint(data)  # its row is not there yet
    await History(house.database, house.store).delete(job_id)
    await house.keep(again)
    assert (await house.store.get(again.id)).data == data


async def test_a_bucket_that_is_away_costs_no_answer(tmp_path: Path) -> None:
    blobs = open_blobs("s3://nowhere/pictures", {"endpoint": "http://127.0.0.1:1", "region": "x",
                       "access_key_id": "a", "secret_access_key": "b"})  # fmt: skip
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        house = House(database, blobs)
        await house.store.open()
        picture = await house.paint(png())
        assert picture.state == "not_stored"
        assert (await house.store.get(picture.id)).data == png()
        with pytest.raises(StoreUnavailable):
            await house.store.sweep()


# -- a folder --------------------------------------------------------------------------------------


async def test_a_full_disk_costs_no_answer_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'easel.db'}") as database:
        house = House(database, Folder(tmp_path / "pictures"))
        await house.store.open()
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            with pytest.raises(StorageFull):
                await house.blobs.put("aa/large.png", bytes(1_500_000))
            refused = await house.paint(png(content=bytes(1_500_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refused.state == "not_stored"
        assert len((await house.store.get(refused.id)).data) > 1_500_000
        files = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
        assert [path.name for path in files] == ["easel-store"]
        accepted = await house.paint(png(content=bytes(1_500_000)))
        assert accepted.state == "stored", "it recovers by itself"
        job_id = (await house.keep(refused))[0]
        past = await History(database, house.store).get(job_id)
        assert past.pictures[0].state == "not_stored"
        with pytest.raises(NotFound):
            await house.store.get(refused.id)
        await house.store.close()


async def test_free_room_is_that_of_the_disk(tmp_path: Path) -> None:
    free = await Folder(tmp_path / "not" / "there").free_bytes()
    facts = os.statvfs(tmp_path)
    assert free is not None
    assert abs(free - facts.f_bavail * facts.f_frsize) < 1e9


async def test_no_reader_sees_half_a_picture(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    data = os.urandom(3_000_000)
    seen: set[int] = set()
    writing = asyncio.create_task(folder.put("aa/large.png", data))
    while not writing.done():
        there = await folder.get("aa/large.png")
        seen.add(-1 if there is None else len(there))
    await writing
    assert seen <= {-1, len(data)}
    await folder.close()


async def test_old_drafts_are_cleared_away_and_young_ones_are_not(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    await folder.put("aa/x.png", b"x")
    for name, age in (("old", 4000), ("young", 10)):
        draft = tmp_path / "aa" / f".{name}.part"
        draft.write_bytes(b"half")
        os.utime(draft, (time.time() - age,) * 2)
    assert [blob.name async for page in folder.pages() for blob in page] == ["aa/x.png"]
    assert sorted(path.name for path in (tmp_path / "aa").iterdir()) == [".young.part", "x.png"]
    await folder.close()


# -- links -----------------------------------------------------------------------------------------


def test_a_link_is_good_for_one_picture_until_it_expires(tmp_path: Path) -> None:
    now = [1000.0]
    links = Links.open(tmp_path / "data", clock=lambda: now[0])
    signature = links.sign("01ABC", 1060)
    assert links.verify("01ABC", 1060, signature)
    assert not links.verify("01ABD", 1060, signature)
    assert not links.verify("01ABC", 1061, signature)
    for wrong in ("", signature[:-1], signature + "A", signature.swapcase(), "é", "\ud800"):
        assert not links.verify("01ABC", 1060, wrong)
    now[0] = 1060.0
    assert not links.verify("01ABC", 1060, signature)


def test_links_outlive_a_restart_and_their_key_is_private(tmp_path: Path) -> None:
    signature = Links.open(tmp_path).sign("01ABC", 2**31)
    assert Links.open(tmp_path).verify("01ABC", 2**31, signature)
    file = tmp_path / "links.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["links.key"]
    file.write_bytes(b"short")
    assert not Links.open(tmp_path).verify("01ABC", 2**31, signature)
    assert len(file.read_bytes()) == 32
