"""Runs the web application: one process, one event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable

import uvicorn

from app import logs
from app.gateway import Gateway
from app.main import build, create_app
from app.settings import ConfigurationError, Settings
from app.store.database import StoreRefused
from app.store.errors import StoreUnavailable

_log = logging.getLogger(__name__)

_LAST_GOODBYES = 5
"""Seconds that answers get to be sent after every job has ended."""


class _Server(uvicorn.Server):
    """Ends all jobs before it waits for their answers to be sent.

    The stock server first waits for open answers, for ever if need be, and only then tells the
    application to stop: a stream of a running job would never end (uvicorn 0.54).
    """

    def __init__(self, config: uvicorn.Config, end_jobs: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._end_jobs = end_jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._end_jobs()
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigurationError."""
    logs.set_up(settings.log_format)
    gateway = build(settings)
    try:
        asyncio.run(_open(settings, gateway))
    except (StoreRefused, StoreUnavailable) as error:
        raise ConfigurationError(f"the store cannot be used: {error}") from error
    config = uvicorn.Config(
        create_app(settings, gateway),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_GOODBYES,
    )
    sock = config.bind_socket()
    # asyncio sets this only on sockets made with an explicit protocol, which uvicorn's is not; without
    # it every answer on a kept connection waits 40 ms for the acknowledgement of the one before.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gc.collect()
    gc.freeze()  # what is there now stays: no request waits while the collector looks through it
    _log.info("Easel serves on http://%s", _address(sock))
    _Server(config, lambda: gateway.end_jobs(settings.drain_seconds)).run(sockets=[sock])


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
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
