"""One thread computes with all cores, and whoever asked for one has one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from app.engines import cores


def test_one_thread_has_one_core_and_all_others_have_all() -> None:
    count = torch.get_num_threads()
    with ThreadPoolExecutor(1) as modest, ThreadPoolExecutor(1) as device:
        modest.submit(cores.use_one).result()
        device.submit(cores.use_all).result()

        assert modest.submit(torch.get_num_threads).result() == 1
        assert device.submit(torch.get_num_threads).result() == count
    assert torch.get_num_threads() == count
