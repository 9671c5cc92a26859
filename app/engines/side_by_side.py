"""Several pictures of one request at the same time, and one end for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait


def side_by_side(draw: Callable[[int], None], count: int, at_once: int) -> None:
    """Call `draw` for 0 to `count` - 1, `at_once` of them at a time; one by one in this thread if 1.

    After the first exception no further one begins; it is raised when those that began have ended.
    """
    if count == 1 or at_once == 1:
        for index in range(count):
            draw(index)
        return
    failed = threading.Event()

    def unless_failed(index: int) -> None:
        if failed.is_set():
            return
        try:
            draw(index)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(min(count, at_once), thread_name_prefix="picture") as threads:
        drawn = [threads.submit(unless_failed, index) for index in range(count)]
        wait(drawn, return_when=FIRST_EXCEPTION)
    for one in drawn:
        one.result()
