"""A front door in one file, as somebody who never saw the house would write one: a line in is a prompt,
lines out are the job's id, its progress and where the picture is. `python -m tests.line_door PORT`
serves it beside the others."""

from __future__ import annotations

import asyncio
import sys

from app.api._door import CannotOpen, Door
from app.api._jobs import events_of
from app.api._vision import Desk
from app.authentication import Authenticator
from app.domain.errors import EaselError
from app.domain.events import Failed, ImageReady, Progressed
from app.domain.request import Arguments
from app.gateway import Gateway
from app.service import ImageService


class LineDoor:
    def __init__(self, service: ImageService, authenticator: Authenticator, port: int) -> None:
        self._service = service
        self._authenticator = authenticator
        self._port = port
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        except OSError as error:
            raise CannotOpen(f"port {self._port} for lines is taken") from error

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            prompt = (await reader.readline()).decode().strip()
            caller = await self._authenticator.caller("", "generate")
            job = await self._service.submit(
                Arguments(prompt=prompt), owner=caller.owner, door="line"
            )
            writer.write(f"job {job.id}\n".encode())
            self._service.attend(job)
            try:
                async for numbered in events_of(self._service, job):
                    match numbered.event:
                        case Progressed(progress=progress):
                            writer.write(f"at {progress:.1f}\n".encode())
                        case ImageReady(image_id=image_id):
                            writer.write(f"picture {image_id}\n".encode())
                        case Failed(message=message):
                            writer.write(f"error {message}\n".encode())
                    await writer.drain()
            finally:
                await self._service.leave(job)
        except EaselError as error:
            writer.write(f"error {error.message}\n".encode())
        finally:
            writer.close()


if __name__ == "__main__":
    from app import server
    from app.settings import ConfigurationError, Settings, load_settings

    def with_lines(settings: Settings, gateway: Gateway, desk: Desk) -> list[Door]:
        return [LineDoor(gateway.service, gateway.authenticator, int(sys.argv[1]))]

    server.other_doors = with_lines  # type: ignore[attr-defined]
    try:
        server.run(load_settings())
    except ConfigurationError as error:
        sys.exit(str(error))
