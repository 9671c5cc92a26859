"""Which threads compute with all cores of a CPU: one.

libgomp keeps a team for every thread that has ever computed in parallel. While all teams together have
more threads than there are cores, their threads sleep between two kernels where they would spin, and a
picture of a small model takes twice as long. So only the thread that does a device's work has a team.
"""

from __future__ import annotations

import threading

import torch

_LOCK = threading.Lock()
"""Held while the number that new threads begin with is not that of the cores."""


def use_all() -> None:
    """Let the calling thread compute with all cores."""
    with _LOCK:
        torch.get_num_threads()  # what a thread finds when it first asks is what it keeps


def use_one() -> None:
    """Let the calling thread compute by itself, whatever others do."""
    with _LOCK:
        count = torch.get_num_threads()
        torch.set_num_threads(1)  # for this thread, and for those that have not asked yet
        others = threading.Thread(target=torch.set_num_threads, args=(count,))
        others.start()
        others.join()
