"""Runs the web application: one process, one event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from app import devices, logs, systemd
from app.api._door import CannotOpen, Door
from app.api._vision import Desk
from app.gateway import Gateway
from app.main import build, create_app, other_doors
from app.pid_file import InUse, serving_from
from app.settings import ConfigurationError, Settings
from app.store.database import StoreRefused
from app.store.errors import StoreUnavailable

_log = logging.getLogger(__name__)

_LAST_GOODBYES = 5
"""Seconds that answers get to be sent after every job has ended."""


class _Server(uvicorn.Server):
    """Ends all jobs before it waits for their answers to be sent.

    The stock server first waits for open answers, for ever if need be, and only then tells the
    application to stop: a stream of a running job would never end (uvicorn 0.54). While running jobs
    get their time it goes on to listen, and answers that it is going.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        gateway: Gateway,
        doors: Sequence[Door],
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._doors = doors
        self._opened: list[Door] = []
        self._drain_seconds = drain_seconds
        self.refused: CannotOpen | None = None
        self._hurried = False
        self._reloading: asyncio.Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            for door in self._doors:
                await door.open()
                self._opened.append(door)
        except CannotOpen as error:
            self.refused, self.should_exit = error, True
            return
        systemd.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        systemd.notify("STOPPING=1")
        await self._gateway.end_jobs(self._drain_seconds)
        for door in reversed(self._opened):
            await door.close()
        await super().shutdown(sockets)

    def _reload(self) -> None:
        self._reloading = asyncio.ensure_future(self._reread())

    async def _reread(self) -> None:
        """What was wrong is told in the log, and then all stays as it was."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await self._gateway.reload()
            _log.info("the model cards, styles and upscalers were read anew")
        except ConfigurationError as error:
            _log.error("nothing was reloaded: %s", error)
        finally:
            systemd.notify("READY=1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in peace, the second soon, the third at once."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif self._hurried:
            self.force_exit = True
        else:
            self._hurried = True
            self._gateway.hurry()
            self.config.timeout_graceful_shutdown = 1


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigurationError."""
    logs.set_up(settings.log_format)
    given = systemd.listening()
    if given is not None and given.family != socket.AF_UNIX:  # there it listens, whatever is set
        host, port = given.getsockname()[:2]
        settings = settings.model_copy(update={"host": host, "port": port})
    gateway = build(settings)
    try:
        asyncio.run(_open(settings, gateway))
    except (StoreRefused, StoreUnavailable) as error:
        raise ConfigurationError(f"the store cannot be used: {error}") from error
    try:
        with serving_from(settings.data_dir):
            _serve(settings, gateway, given)
    except InUse as error:
        raise ConfigurationError(str(error)) from error


def _serve(settings: Settings, gateway: Gateway, given: socket.socket | None) -> None:
    desk = Desk(gateway.service)
    config = uvicorn.Config(
        create_app(settings, gateway, desk),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_per_message_deflate=False,  # what is large is pictures, which are as small as they get
        timeout_graceful_shutdown=_LAST_GOODBYES,
    )
    sock = given or config.bind_socket()
    if sock.family != socket.AF_UNIX:
        # asyncio sets this only on sockets made with an explicit protocol, which uvicorn's is not;
        # without it every answer on a kept connection waits 40 ms for the acknowledgement before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gc.collect()
    gc.freeze()  # what is there now stays: no request waits while the collector looks through it
    _log.info("Easel serves on %s", _address(sock))
    if settings.devices == "auto" and (why := devices.idle()):
        _log.warning("%s", why)
    doors = other_doors(settings, gateway, desk)
    server = _Server(config, gateway, doors, settings.drain_seconds)
    server.run(sockets=[sock])
    if server.refused is not None:
        raise ConfigurationError(str(server.refused))


async def _open(settings: Settings, gateway: Gateway) -> None:
    """Open the store, and see whether strangers could come in. Raises ConfigurationError, and what
    `Gateway.open` raises."""
    await gateway.open()
    if await gateway.keys.needed():
        return
    if not settings.keyless:
        raise ConfigurationError(
            f"host {settings.host} can be reached from other machines, and there is no key. Make one "
            "with `easel keys create NAME`; or keep host = 127.0.0.1; or, if a proxy in front of this "
            "server asks everybody who they are, and nobody can go around it, say "
            "proxy_authenticates = true."
        )
    if "*" in settings.cors_origins:
        raise ConfigurationError(
            'cors_origins = ["*"] lets every page of the internet draw here, as there is no key. Name '
            "the pages, or make a key with `easel keys create NAME`."
        )


def _address(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return f"the socket {sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
