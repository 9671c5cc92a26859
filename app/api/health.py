"""For whoever watches over the server."""

from __future__ import annotations

from typing import Any

from litestar import Response, get
from litestar.di import NamedDependency

from app.api._schema import answers
from app.api._shapes import Alive, Readiness
from app.service import ImageService


@get("/health", **answers(Alive, access="public"))
async def health() -> dict[str, str]:
    """The process is alive and answers."""
    return {"status": "ok"}


@get("/ready", **answers(Readiness, failing={503: Readiness}, access="public"))
async def ready(service: NamedDependency[ImageService]) -> Response[dict[str, Any]]:
    """200 once a picture can be drawn without waiting for a worker or a preloaded model."""
    workers = [
        {"id": slot.id, "device": slot.device, "state": slot.state, "models": slot.models}
        for slot in service.slots()
    ]
    body = {"ready": service.ready, "workers": workers, "waiting": service.waiting()}
    return Response(body, status_code=200 if service.ready else 503)


HANDLERS = [health, ready]
