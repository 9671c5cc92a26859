"""Runs the web application: one process, one event loop, and an orderly end."""

from __future__ import annotations

import logging
import socket

import uvicorn

from app.main import create_app
from app.settings import Settings

_log = logging.getLogger(__name__)

_LAST_GOODBYES = 5
"""Seconds that answers get to be sent after every job has ended."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigurationError."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_GOODBYES,
    )
    sock = config.bind_socket()
    _log.info("Easel serves on http://%s", _address(sock))
    uvicorn.Server(config).run(sockets=[sock])


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
