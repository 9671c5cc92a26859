"""What systemd gives to a service and wants to hear of it: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import os
import socket

_FIRST = 3
"""SD_LISTEN_FDS_START."""


def listening() -> socket.socket | None:
    """The socket that systemd listens on for this process, if it does.

    It outlives the process: who connects during a restart waits for the next one, and nobody is
    refused. Of several the first is taken.
    """
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not mine or not count.isdecimal() or int(count) < 1:
        return None
    sock = socket.socket(fileno=_FIRST)
    sock.set_inheritable(False)  # workers must not hold it
    return sock


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told; a message that cannot be sent is lost."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return
