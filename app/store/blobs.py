"""Bytes by name: in a folder of this machine, or in a bucket that speaks S3.

What you can rely on, of both: a blob is there as a whole or not at all; what `put` returned from
survives a crash, and in a folder a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from app.store.errors import StorageFull, StoreUnavailable

T = TypeVar("T")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DRAFT = ".part"
_DRAFT_SECONDS = 3600.0


class Blob(NamedTuple):
    """`modified` is Unix seconds: when it was last put."""

    name: str
    bytes: int
    modified: float


class Blobs(Protocol):
    """A place for blobs. Names are relative paths with `/`. Everything may raise StoreUnavailable."""

    async def put(self, name: str, data: bytes) -> None:
        """Raises StorageFull. One that is there already is renewed: its `modified` becomes now."""
        ...

    async def get(self, name: str) -> bytes | None: ...

    async def has(self, name: str) -> bool: ...

    async def delete(self, names: Sequence[str]) -> None:
        """Those that are not there do no harm."""
        ...

    def pages(self) -> AsyncIterator[list[Blob]]:
        """All of them, some at a time."""
        ...

    async def free_bytes(self) -> int | None:
        """How much there is room for, where anybody knows."""
        ...

    async def close(self) -> None: ...


def open_blobs(place: str | Path, options: Mapping[str, str] | None = None) -> Blobs:
    """A folder by its path; a bucket by `s3://bucket/prefix`.

    A bucket takes its `options` (`endpoint`, `region`, `access_key_id` …) from here and from the
    usual `AWS_…` variables.
    """
    if "://" in str(place):
        return Bucket(str(place), options or {})
    return Folder(Path(place))


class Folder:
    """Files under `root`, which is made when it is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hands = ThreadPoolExecutor(4, "store-files")

    async def put(self, name: str, data: bytes) -> None:
        await self._do(lambda: self._put(self._root / name, data))

    async def get(self, name: str) -> bytes | None:
        return await self._do(lambda: self._get(self._root / name))

    async def has(self, name: str) -> bool:
        return await self._do((self._root / name).is_file)

    async def delete(self, names: Sequence[str]) -> None:
        def work() -> None:
            for name in names:
                _unlink(self._root / name)

        await self._do(work)

    async def pages(self) -> AsyncIterator[list[Blob]]:
        for folder in await self._do(self._folders):
            yield await self._do(partial(self._page, folder))

    async def free_bytes(self) -> int | None:
        return await self._do(self._free)

    async def close(self) -> None:
        await asyncio.to_thread(self._hands.shutdown)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hands, work)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise StorageFull("There is no room left for pictures.") from error
            raise StoreUnavailable("The picture folder cannot be used now.") from error

    def _put(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size == len(data):  # noqa: PTH116
                os.utime(path)
                return
        fresh = not path.parent.is_dir()
        os.makedirs(path.parent, exist_ok=True)  # noqa: PTH103
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_DRAFT}")
        try:
            self._write(draft, data)
            os.replace(draft, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                _unlink(draft)
            raise
        _sync_folder(path.parent)
        if fresh:
            _sync_folder(path.parent.parent)

    def _write(self, draft: Path, data: bytes) -> None:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def _get(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _folders(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [self._root, *sorted(path for path in self._root.iterdir() if path.is_dir())]

    def _page(self, folder: Path) -> list[Blob]:
        found: list[Blob] = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
                if not entry.is_file(follow_symlinks=False):
                    continue
                facts = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_DRAFT):
                    if facts.st_mtime < time.time() - _DRAFT_SECONDS:
                        _unlink(Path(entry.path))
                    continue
                name = Path(entry.path).relative_to(self._root).as_posix()
                found.append(Blob(name, facts.st_size, facts.st_mtime))
        return found

    def _free(self) -> int:
        root = self._root
        while not root.exists():
            root = root.parent
        facts = os.statvfs(root)
        return facts.f_bavail * facts.f_frsize


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Bucket:
    """Objects in a bucket, under the path of its URL."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._bucket: ObjectStore = from_url(  # type: ignore[call-overload]
            url,
            config=dict(options),
            client_options={"timeout": "30s", "connect_timeout": "2s", "allow_http": True},
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )

    async def put(self, name: str, data: bytes) -> None:
        with _answering():
            await self._bucket.put_async(name, data)

    async def get(self, name: str) -> bytes | None:
        with _answering():
            try:
                found = await self._bucket.get_async(name)
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def has(self, name: str) -> bool:
        with _answering():
            try:
                await self._bucket.head_async(name)
            except FileNotFoundError:
                return False
            return True

    async def delete(self, names: Sequence[str]) -> None:
        with _answering(), contextlib.suppress(FileNotFoundError):
            await self._bucket.delete_async(list(names))

    async def pages(self) -> AsyncIterator[list[Blob]]:
        with _answering():
            async for page in self._bucket.list():
                yield [
                    Blob(one["path"], one["size"], one["last_modified"].timestamp()) for one in page
                ]

    async def free_bytes(self) -> int | None:
        return None

    async def close(self) -> None:
        pass


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreUnavailable("The bucket of pictures does not answer now.") from error
