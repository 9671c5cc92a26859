"""What was drawn: looked through, marked, fetched, and in the end forgotten."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from app.domain.errors import NotFound
from app.job_board import JobBoard
from app.store.errors import StorageFull
from app.store.history import History, Limits, Page, Past, Wanted
from app.store.links import Links
from app.store.pictures import PictureStore, StoredImage, Swept
from app.store.statistics import Report, Statistics


class Archive:
    """Jobs and pictures of every door, as they are stored. `link_seconds` is how long links last;
    with less than `low_water` bytes of room nothing more is taken in.

    Everything may raise StoreUnavailable.
    """

    def __init__(
        self,
        board: JobBoard,
        history: History,
        pictures: PictureStore,
        statistics: Statistics,
        links: Links,
        *,
        link_seconds: float,
        low_water: int,
        database_room: Callable[[], Awaitable[int | None]],
    ) -> None:
        self._board = board
        self._history = history
        self._pictures = pictures
        self._statistics = statistics
        self._links = links
        self._link_seconds = link_seconds
        self._low_water = low_water
        self._rooms = (pictures.free_bytes, database_room)
        self._has_room = True

    async def look_for_room(self) -> None:
        """See whether there is room for more jobs and pictures."""
        found = [await room() for room in self._rooms]
        self._has_room = all(free is None or free >= self._low_water for free in found)

    def check_room(self) -> None:
        """Whether there was room when it was last looked for. Raises StorageFull."""
        if not self._has_room:
            raise StorageFull("There is too little room left for new pictures.")

    # -- jobs --------------------------------------------------------------------------------------

    async def list(
        self, wanted: Wanted | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """Jobs that are `wanted`, newest first. Raises InvalidRequest for a cursor that is none."""
        return await self._history.list(wanted, limit=limit, cursor=cursor)

    async def get(self, job_id: str) -> Past:
        """Raises NotFound."""
        return await self._history.get(job_id)

    async def tag(self, job_id: str, tag: str, on: bool = True) -> None:
        """Put a tag on a job, or take it off. Raises NotFound, InvalidRequest."""
        await self._history.tag(job_id, tag, on)

    async def forget(self, job_id: str) -> None:
        """Remove an ended job and its pictures. Raises NotFound, InvalidRequest."""
        await self._history.delete(job_id)
        self._board.forget(job_id)

    async def forget_owner(self, owner: str) -> int:
        """Remove every job of an owner; tell how many."""
        removed = await self._history.delete_owner(owner)
        self._board.forget_owner(owner)
        return removed

    async def retain(self, limits: Limits) -> int:
        """Remove what exceeds the limits; tell how many jobs."""
        return await self._history.retain(limits, time.time())

    async def report(self, *, since: float = 0.0, owner: str | None = None) -> Report:
        """How long pictures took, how jobs ended, how long they waited."""
        return await self._statistics.report(since=since, owner=owner)

    # -- pictures ----------------------------------------------------------------------------------

    async def owner_of_image(self, image_id: str) -> str | None:
        """Whose picture it is; None where there is no such picture."""
        return await self._history.owner_of_image(image_id)

    async def image(self, image_id: str) -> StoredImage:
        """Raises NotFound."""
        return await self._pictures.get(image_id)

    async def thumbnail(self, image_id: str) -> StoredImage:
        """A small version of a picture; the picture itself when that is small. Raises NotFound."""
        return await self._pictures.thumbnail(image_id)

    async def favourite(self, image_id: str, on: bool = True) -> None:
        """Mark a picture, so that no limit removes it. Raises NotFound."""
        await self._history.favourite(image_id, on)

    async def delete_image(self, image_id: str) -> None:
        """Remove one picture; its job stays. Raises NotFound."""
        await self._pictures.delete(image_id)

    async def sweep(self) -> Swept:
        """Make files and rows agree."""
        return await self._pictures.sweep()

    # -- links -------------------------------------------------------------------------------------

    def link(self, image_id: str) -> str:
        """Path and query under which a picture can be fetched for a while, by whoever has it."""
        expires = int(time.time() + self._link_seconds)
        signature = self._links.sign(image_id, expires)
        return f"/images/{image_id}?expires={expires}&signature={signature}"

    def check_link(self, image_id: str, expires: int, signature: str) -> None:
        """Raises NotFound: the link has expired, or was not made here."""
        if not self._links.verify(image_id, expires, signature):
            raise NotFound("This link has expired, or is not whole.", param="signature")
