"""Finished pictures: a row each in the database, and the bytes in a place for blobs.

What you can rely on: once `put` returned, `get` answers, also when the disk refused (then from memory,
and `state` says so); a picture that is read is, byte for byte, the one that was drawn; equal pictures
are stored once; `sweep` makes rows and files agree.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import imagesize
import msgspec
from sqlalchemy import Connection, select, update

from app.domain.errors import NotFound
from app.store.blobs import Blobs
from app.store.database import Database
from app.store.errors import StorageFull, StoreUnavailable
from app.store.jobs import Picture
from app.store.schema import IMAGES, JOBS

_log = logging.getLogger(__name__)

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_OURS = re.compile(r"[0-9a-f]{2}/([0-9a-f]{64})(?:\.png|\.jpg|\.webp|\.thumb\.webp)")
_MARK = "easel-store"
"""Names the database that the pictures belong to: no other one may sweep them away."""

_AGE = 3600.0
"""A file without a row is an orphan when it is older than these seconds."""

_CHUNK = 500


class StoredImage(msgspec.Struct, frozen=True):
    data: bytes
    media_type: str


class Swept(msgspec.Struct, frozen=True):
    """`removed` files had no row; the pictures `missing` (ids) have lost their file."""

    removed: int
    missing: list[str]


class PictureStore:
    """Opened by `open`. The newest pictures are also in memory, `memory_bytes` of them."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        *,
        memory_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._limit = memory_bytes
        self._clock = clock
        self._held = 0
        self._recent: OrderedDict[str, StoredImage] = OrderedDict()
        self._pending: dict[str, tuple[str, float]] = {}
        self._unmarked = False
        self._removing = asyncio.Lock()

    async def open(self) -> None:
        """Mark the place of a new database as its own. One that refuses is warned of, and tried again.

        Raises StoreUnavailable, when the database does not answer.
        """
        self._unmarked = not await self._database.read(_any_image)
        try:
            await self._mark()
        except (StoreUnavailable, StorageFull) as error:
            _log.warning("pictures cannot be stored: %s", error.message)

    async def close(self) -> None:
        await self._blobs.close()

    async def put(
        self,
        image_id: str,
        index: int,
        seed: int,
        image: StoredImage,
        thumbnail: bytes | None = None,
    ) -> Picture:
        """Store a picture; its row is for `JobStore.append`, together with its `ImageReady`.

        `thumbnail` is a small version of it, as WebP, where it is large. When it
        cannot be stored, `state` is `not_stored` and the picture is in memory only.
        """
        self._remember(image_id, image)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(image.data).hexdigest())
        width, height = _size(image.data)
        picture = Picture(
            id=image_id,
            index=index,
            seed=seed,
            media_type=image.media_type,
            bytes=len(image.data),
            digest=digest,
            width=width,
            height=height,
        )
        name = _name(digest, image.media_type)
        async with self._removing:  # what is being removed may be the same picture
            self._pending[image_id] = (name, self._clock())
        try:
            await self._mark()
            await self._blobs.put(name, image.data)
            if thumbnail is not None:
                await self._blobs.put(_small(name), thumbnail)
        except (StorageFull, StoreUnavailable) as error:
            _log.warning("picture %s is not stored: %s", image_id, error.message)
            self._pending.pop(image_id, None)
            return msgspec.structs.replace(picture, state="not_stored")
        return picture

    async def get(self, image_id: str) -> StoredImage:
        """Raises NotFound, StoreUnavailable."""
        if (held := self._recent.get(image_id)) is not None:
            return held
        row = None
        if image_id.isalnum() and image_id.isascii():
            row = await self._database.read(lambda connection: _place(connection, image_id))
        if row is not None:
            digest, media_type = row
            data = await self._blobs.get(_name(digest, media_type))
            if data is not None:
                if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) == digest:
                    return StoredImage(data, media_type)
                _log.error("the file of picture %s is damaged", image_id)
        raise NotFound("There is no such picture.", param="id")

    async def thumbnail(self, image_id: str) -> StoredImage:
        """A small version of a picture, or the picture itself, where there is none.

        Raises NotFound, StoreUnavailable.
        """
        row = None
        if image_id.isalnum() and image_id.isascii():
            row = await self._database.read(lambda connection: _place(connection, image_id))
        if row is not None:
            data = await self._blobs.get(_small(_name(*row)))
            if data is not None:
                return StoredImage(data, "image/webp")
        return await self.get(image_id)

    async def delete(self, image_id: str) -> None:
        """Remove one picture; its row stays and says `deleted`. Raises NotFound."""

        def work(connection: Connection) -> tuple[str, str]:
            row = _place(connection, image_id)
            if row is None:
                raise NotFound("There is no such picture.", param="id")
            of = IMAGES.c.id == image_id
            size = select(IMAGES.c.bytes).where(of).scalar_subquery()
            job = select(IMAGES.c.job).where(of).scalar_subquery()
            connection.execute(
                update(JOBS).where(JOBS.c.seq == job).values(bytes=JOBS.c.bytes - size)
            )
            connection.execute(update(IMAGES).where(of).values(state="deleted"))
            return row

        row = await self._database.write(work)
        await self.discard({image_id: _name(*row)})

    async def discard(self, images: dict[str, str]) -> None:
        """Forget pictures (id: name) whose rows are gone; remove files that no other row needs.

        Files that cannot be removed now are left to `sweep`.
        """
        for image_id in images:
            self._pending.pop(image_id, None)
            if held := self._recent.pop(image_id, None):
                self._held -= len(held.data)
        async with self._removing:
            try:
                names = set(images.values())
                await self._remove(sorted(names | {_small(name) for name in names}))
            except StoreUnavailable as error:
                _log.warning("files of deleted pictures remain for now: %s", error.message)

    async def sweep(self) -> Swept:
        """Remove files that no row names, when they are an hour old; mark rows without a file.

        Raises StoreUnavailable, also where the place of the pictures belongs to another database.
        """
        if await self._blobs.get(_MARK) != self._database.instance.encode():
            raise StoreUnavailable("The place of the pictures is not this database's.")
        there: set[str] = set()
        removed = 0
        async for page in self._blobs.pages():
            ours = [blob for blob in page if _OURS.fullmatch(blob.name)]
            there.update(blob.name for blob in ours)
            old = [blob.name for blob in ours if blob.modified < self._clock() - _AGE]
            async with self._removing:
                removed += await self._remove(old)
        missing = [
            image_id
            for image_id, name in (await self._database.read(_stored)).items()
            if name not in there and not await self._blobs.has(name)
        ]
        if missing:
            await self._database.write(lambda connection: _lose(connection, missing))
            _log.error("%d pictures have lost their file", len(missing))
        return Swept(removed, missing)

    async def free_bytes(self) -> int | None:
        """How much the place has room for; None where nobody knows. Raises StoreUnavailable."""
        return await self._blobs.free_bytes()

    async def _mark(self) -> None:
        if self._unmarked:
            if await self._blobs.get(_MARK) is None:
                await self._blobs.put(_MARK, self._database.instance.encode())
            self._unmarked = False

    async def _remove(self, names: Sequence[str]) -> int:
        """Remove the files of `names` that nothing needs, and tell how many they were."""
        removed = 0
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            await self._settle()
            kept = {name for name, _ in self._pending.values()}
            kept |= {_small(name) for name in kept}
            kept |= await self._database.read(partial(_named, names=chunk))
            gone = [name for name in chunk if name not in kept]
            if gone:
                await self._blobs.delete(gone)
            removed += len(gone)
        return removed

    async def _settle(self) -> None:
        """Forget about pictures whose row is there by now, or will never be."""
        if not self._pending:
            return
        waiting = list(self._pending)
        rows = await self._database.read(
            lambda connection: set(
                connection.scalars(select(IMAGES.c.id).where(IMAGES.c.id.in_(waiting)))
            )
        )
        expired = self._clock() - _AGE
        for image_id in waiting:
            if image_id in rows or self._pending[image_id][1] < expired:
                self._pending.pop(image_id, None)

    def _remember(self, image_id: str, image: StoredImage) -> None:
        if replaced := self._recent.pop(image_id, None):
            self._held -= len(replaced.data)
        self._recent[image_id] = image
        self._held += len(image.data)
        while self._held > self._limit and len(self._recent) > 1:
            self._held -= len(self._recent.popitem(last=False)[1].data)


def _name(digest: str, media_type: str) -> str:
    return f"{digest[:2]}/{digest}{_SUFFIXES[media_type]}"


def _small(name: str) -> str:
    """The name of a picture's thumbnail."""
    return f"{name.partition('.')[0]}.thumb.webp"


def _size(data: bytes) -> tuple[int, int]:
    """Width and height as the header says; zeros, where it says nothing."""
    try:
        width, height = imagesize.get(io.BytesIO(data))
    except Exception:  # a damaged header raises whatever its parser stumbles over
        return 0, 0
    return max(0, width), max(0, height)


def names_of(connection: Connection, jobs: Iterable[int]) -> dict[str, str]:
    """Ids and file names of the stored pictures of jobs."""
    found = connection.execute(
        select(IMAGES.c.id, IMAGES.c.digest, IMAGES.c.media_type).where(
            IMAGES.c.job.in_(list(jobs)), IMAGES.c.state == "stored"
        )
    )
    return {image_id: _name(digest, media_type) for image_id, digest, media_type in found}


def _any_image(connection: Connection) -> bool:
    return connection.scalar(select(IMAGES.c.id).limit(1)) is not None


def _place(connection: Connection, image_id: str) -> tuple[str, str] | None:
    row = connection.execute(
        select(IMAGES.c.digest, IMAGES.c.media_type).where(
            IMAGES.c.id == image_id, IMAGES.c.state == "stored"
        )
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _named(connection: Connection, names: Sequence[str]) -> set[str]:
    """Which of `names` a stored picture has."""
    of: dict[str, list[str]] = {}
    for name in names:
        if found := _OURS.fullmatch(name):
            of.setdefault(found[1], []).append(name)
    needed = connection.scalars(
        select(IMAGES.c.digest).where(IMAGES.c.digest.in_(of), IMAGES.c.state == "stored")
    )
    return {name for digest in needed for name in of[digest]}


def _stored(connection: Connection) -> dict[str, str]:
    found = connection.execute(
        select(IMAGES.c.id, IMAGES.c.digest, IMAGES.c.media_type).where(IMAGES.c.state == "stored")
    )
    return {image_id: _name(digest, media_type) for image_id, digest, media_type in found}


def _lose(connection: Connection, image_ids: Sequence[str]) -> None:
    for first in range(0, len(image_ids), _CHUNK):
        some = image_ids[first : first + _CHUNK]
        lost = update(IMAGES).where(IMAGES.c.id.in_(some)).values(state="not_stored")
        connection.execute(lost)
