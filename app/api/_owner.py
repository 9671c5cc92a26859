"""Whose a request is: what fair sharing goes by, and whose jobs and pictures it may see.

What belongs to somebody else is not there: 404, as for what never was.
"""

from __future__ import annotations

from typing import Any

from litestar import Request

from app.api._access import Connection, caller_of, user_of
from app.api._http import DoorSettings
from app.authentication import keyless
from app.domain.access import Caller
from app.domain.errors import NotFound
from app.domain.job import Job
from app.service import ImageService


def owner_of(request: Request[Any, Any, Any], doors: DoorSettings) -> str:
    """The owner of the key; behind it, or without keys, the user that a trusted proxy names in
    `X-OpenWebUI-User-Id` (a name of odd letters is none)."""
    if "easel_caller" in request.scope.get("state", {}):
        return caller_of(request).owner
    return keyless(user_of(request), trust=doors.trust_user_header).owner


async def own_job(connection: Connection, service: ImageService, job_id: str) -> Job:
    """A job that the caller may see. Raises NotFound, StoreUnavailable."""
    return await visible_job(service, caller_of(connection), job_id)


async def visible_job(service: ImageService, caller: Caller, job_id: str) -> Job:
    """The same, of any door. Raises NotFound, StoreUnavailable."""
    if not (job_id.isascii() and job_id.isalnum()):  # no id of ours
        raise NotFound("There is no such job.", param="id")
    job = await service.job(job_id)
    if not caller.sees(job.owner):
        raise NotFound("There is no such job.", param="id")
    return job


async def check_picture(connection: Connection, service: ImageService, image_id: str) -> None:
    """Whether the caller may see a picture. Raises NotFound, StoreUnavailable."""
    caller = caller_of(connection)
    if caller.everyone:
        return
    owner = await service.archive.owner_of_image(image_id)
    if owner is None or not caller.sees(owner):
        raise NotFound("There is no such picture.", param="id")
