"""Finished pictures, one file each, written so that no half of one is ever seen."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import OrderedDict
from pathlib import Path

import msgspec

from app.domain.errors import NotFound

_log = logging.getLogger(__name__)
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}


class StoredImage(msgspec.Struct, frozen=True):
    data: bytes
    media_type: str


class ImageFiles:
    """Pictures under `folder`, the newest also in memory (`memory_bytes` of them).

    What you can rely on: once `put` returns, `get` answers; a file is complete or absent. When the
    disk refuses, the picture stays in memory only and the log says so: an answer is never lost
    because history could not be kept.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self._folder = folder
        self._limit = memory_bytes
        self._held = 0
        self._recent: OrderedDict[str, StoredImage] = OrderedDict()

    async def put(self, image_id: str, image: StoredImage) -> None:
        if replaced := self._recent.pop(image_id, None):
            self._held -= len(replaced.data)
        self._recent[image_id] = image
        self._held += len(image.data)
        while self._held > self._limit and len(self._recent) > 1:
            self._held -= len(self._recent.popitem(last=False)[1].data)
        try:
            await asyncio.to_thread(self._write, image_id, image)
        except OSError as error:
            _log.warning("image %s is not stored: %s", image_id, error.strerror)

    async def get(self, image_id: str) -> StoredImage:
        """Raises NotFound."""
        if _ID.fullmatch(image_id):
            image = self._recent.get(image_id)
            image = image or await asyncio.to_thread(self._read, image_id)
            if image is not None:
                return image
        raise NotFound("There is no such picture.", param="id")

    def _path(self, image_id: str, suffix: str) -> Path:
        # The last two letters of a ULID are random, so folders fill evenly.
        return self._folder / image_id[-2:] / f"{image_id}{suffix}"

    def _write(self, image_id: str, image: StoredImage) -> None:
        path = self._path(image_id, _SUFFIXES[image.media_type])
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        with draft.open("wb") as file:
            file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _read(self, image_id: str) -> StoredImage | None:
        for media_type, suffix in _SUFFIXES.items():
            path = self._path(image_id, suffix)
            if path.exists():
                return StoredImage(path.read_bytes(), media_type)
        return None
