"""The child process: one worker at the end of an inherited socket.

    python -m app.workers.child FD PARENT_PID DEVICE CAPACITY BUDGET

What you can rely on: it holds no listening port; nothing that a library prints reaches the socket;
it never outlives the gateway, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import threading

import msgspec

from app import logs
from app.workers import wire
from app.workers.budget import Budget, memory_of_machine
from app.workers.worker import Worker

_PR_SET_PDEATHSIG = 1


def main(fd: int, parent: int, device: str, capacity: int, budget: Budget) -> None:
    _die_with(parent)
    os.dup2(2, 1)  # what libraries print goes where the log goes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which then ends us
    logs.set_up(logs.of_gateway(), worker=device)
    sock = socket.socket(fileno=fd)
    writing = threading.Lock()

    def send(message: wire.FromWorker) -> None:
        data = wire.frame(message)
        try:
            with writing:
                sock.sendall(data)
        except OSError:
            os._exit(0)  # the gateway is gone, and this process with it

    memory = _memory_of(device)
    # The libraries' half a million objects stay for good: to look through them whenever a model leaves
    # would take a quarter of a second each time.
    gc.collect()
    gc.freeze()
    worker = Worker(device, capacity, budget, send, memory=memory)
    worker.ready()
    while (message := wire.read_blocking(sock)) is not None:
        worker.handle(message)
    os._exit(0)  # at once: a thread may be deep inside a kernel


def _die_with(parent: int) -> None:
    """Ask Linux to kill us when the gateway dies; elsewhere the closed socket ends us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(0)


def _memory_of(device: str) -> int:
    """Total bytes of the device. Also the first import of torch, so that no job waits for it.

    The device "fake" is for the fake engine alone: no torch, and a worker that starts at once.
    """
    if device == "fake":
        return 0
    import torch

    from app.engines import diffusers_engine as _  # noqa: F401

    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    if device.startswith("xpu"):
        return torch.xpu.get_device_properties(device).total_memory
    return memory_of_machine()


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
        msgspec.json.decode(sys.argv[5], type=Budget),
    )
