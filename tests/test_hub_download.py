"""Fetching a model: only what is needed, whole or not at all, and going on where it stopped.

What no download may do is tested with a hub that does what real ones do: it is slow, breaks off, and
sends what is not what it promised.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest

from app.model_files import cache as cache_module
from app.model_files.folder import missing
from tests.hub_mirror import COMMIT, Mirror, mirror_of
from tests.shelves import REPO, UNET, hub_card, pulled, shelf_of, until


def test_a_model_comes_whole_and_nothing_else_does(tmp_path: Path, mirror: Mirror) -> None:
    shelf = shelf_of(tmp_path, hub_card())
    assert shelf.state("painter").state == "not_downloaded"
    assert shelf.local("painter") is None
    seen = pulled(shelf)
    assert seen[-1].state == "on_disk"
    names = {asked.name for asked in mirror.asked}
    assert names == {
        "",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    local = shelf.local("painter")
    assert local is not None
    assert missing(Path(local.source)) == ""
    assert Path(local.source).name == COMMIT
    assert (Path(local.source) / UNET).read_bytes() == (mirror.folders[REPO] / UNET).read_bytes()
    assert seen[-1].bytes_total == sum(file.bytes_total for file in seen[-1].files) > 10_000_000
    assert shelf_of(tmp_path, hub_card()).state("painter").state == "on_disk"


def test_progress_never_falls_and_tells_bytes_of_each_file(tmp_path: Path, mirror: Mirror) -> None:
    mirror.rate = 6e6
    mirror.damaged[UNET] = 1
    shelf = shelf_of(tmp_path, hub_card())
    seen = pulled(shelf)
    assert seen[-1].state == "on_disk"
    planned = [state for state in seen if state.state == "downloading" and state.bytes_total]
    assert len({state.bytes_total for state in planned}) == 1
    counts = [state.bytes_done for state in planned]
    assert counts == sorted(counts)
    assert len(set(counts)) > 20
    unet = [f.bytes_done for state in planned for f in state.files if f.name == UNET]
    assert 0 < sorted(set(unet))[len(set(unet)) // 2] < max(unet)
    rates = [state.bytes_per_second for state in planned if state.bytes_per_second]
    assert 2e6 < sorted(rates)[len(rates) // 2] < 8e6
    assert any(state.seconds_left for state in planned)


def test_a_connection_that_breaks_goes_on_where_it_broke(tmp_path: Path, mirror: Mirror) -> None:
    mirror.cuts[UNET] = [2_000_000, 3_000_000, 100]
    shelf = shelf_of(tmp_path, hub_card())
    assert pulled(shelf)[-1].state == "on_disk"
    first, *more = mirror.ranges(UNET)
    assert first is None
    begins = [int(str(one).removeprefix("bytes=").removesuffix("-")) for one in more]
    assert len(begins) == 3
    assert begins == sorted(begins)
    assert begins[0] > 1_000_000
    size = (mirror.folders[REPO] / UNET).stat().st_size
    assert mirror.sent[UNET] < size + 1_000_000


def test_another_process_goes_on_where_the_first_one_stopped(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.rate = 4e6
    first = shelf_of(tmp_path, hub_card())
    first.pull("painter")
    while mirror.sent.get(UNET, 0) < 3_000_000:
        assert first.state("painter").state == "downloading"
    first.close(5.0)
    mirror.rate = 0.0
    second = shelf_of(tmp_path, hub_card())
    assert second.state("painter").state == "not_downloaded"
    seen = pulled(second)
    assert seen[-1].state == "on_disk"
    assert next(state.bytes_done for state in seen if state.bytes_total) > 2_000_000
    resumed = mirror.ranges(UNET)[-1]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 2_000_000


def test_a_server_without_ranges_sends_everything_again(tmp_path: Path, mirror: Mirror) -> None:
    mirror.ignores_ranges = True
    mirror.cuts[UNET] = [1_000_000]
    seen = pulled(shelf_of(tmp_path, hub_card()))
    assert seen[-1].state == "on_disk"
    assert len(mirror.ranges(UNET)) == 2  # and what it sent was not taken for damaged
    counts = [state.bytes_done for state in seen if state.bytes_total]
    assert counts == sorted(counts)


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_a_damaged_file_is_fetched_once_more(tmp_path: Path, mirror: Mirror, name: str) -> None:
    mirror.damaged[name] = 1
    shelf = shelf_of(tmp_path, hub_card())
    assert pulled(shelf)[-1].state == "on_disk"
    local = shelf.local("painter")
    assert local is not None
    assert (Path(local.source) / name).read_bytes() == (mirror.folders[REPO] / name).read_bytes()


def test_a_file_that_stays_damaged_is_never_shown(tmp_path: Path, mirror: Mirror) -> None:
    mirror.damaged[UNET] = 100
    shelf = shelf_of(tmp_path, hub_card())
    last = pulled(shelf)[-1]
    assert last.state == "unavailable"
    assert "damaged" in last.reason
    assert 0.0 < (last.retry_in or 0.0) <= 5.0
    assert shelf.local("painter") is None
    assert not list((tmp_path / "hub").rglob("diffusion_pytorch_model.safetensors")) or all(
        "vae" in str(path) for path in (tmp_path / "hub").rglob("diffusion_pytorch_model.*")
    )
    mirror.damaged[UNET] = 0
    shelf.want("painter", "a job")
    assert shelf.state("painter").state == "unavailable"  # not before its time
    assert pulled(shelf)[-1].state == "on_disk"  # but for somebody who pulls it


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ([401], "HF_TOKEN"),
        ([403], "HF_TOKEN"),
        ([404], "does not exist"),
        ([500] * 9, "status 500"),
        ([429] * 9, "too often"),
    ],
)
def test_what_the_hub_refuses_is_told(
    tmp_path: Path, mirror: Mirror, statuses: list[int], told: str
) -> None:
    mirror.statuses = statuses
    last = pulled(shelf_of(tmp_path, hub_card()))[-1]
    assert last.state == "unavailable"
    assert told in last.reason
    assert "127.0.0.1" not in last.reason
    assert str(tmp_path) not in last.reason


def test_a_short_trouble_is_none(tmp_path: Path, mirror: Mirror) -> None:
    mirror.statuses = [500, 429, 503]
    assert pulled(shelf_of(tmp_path, hub_card()))[-1].state == "on_disk"


def test_a_repository_that_is_no_model_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    shelf = shelf_of(tmp_path, hub_card(source="hub:tests/nothing"))
    assert "does not exist" in pulled(shelf)[-1].reason
    (mirror.folders[REPO] / UNET).unlink()
    last = pulled(shelf_of(tmp_path, hub_card()))[-1]
    assert "part unet has weights that are cut short" in last.reason
    (mirror.folders[REPO] / "model_index.json").unlink()
    assert "model_index.json" in pulled(shelf_of(tmp_path / "again", hub_card()))[-1].reason


def test_a_hub_that_is_not_there_is_told(tmp_path: Path, mirror: Mirror) -> None:
    with mirror_of({}) as gone:
        url = gone.url
    hub_constants.ENDPOINT = url  # restored by the fixture
    last = pulled(shelf_of(tmp_path, hub_card()))[-1]
    assert "cannot be reached" in last.reason


def test_an_offline_server_asks_nobody(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    last = pulled(shelf_of(tmp_path, hub_card()))[-1]
    assert "HF_HUB_OFFLINE" in last.reason
    assert mirror.asked == []


def test_the_token_is_sent_and_never_logged(
    tmp_path: Path,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    caplog.set_level("DEBUG")
    mirror.statuses = [403]
    shelf = shelf_of(tmp_path, hub_card())
    assert pulled(shelf)[-1].state == "unavailable"
    assert pulled(shelf)[-1].state == "on_disk"
    assert {asked.authorization for asked in mirror.asked} == {"Bearer hf_secretsecret"}
    assert "secretsecret" not in caplog.text


def test_a_full_disk_is_noticed_before_the_first_byte(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.model_files import shelf as shelf_module

    monkeypatch.setattr(shelf_module, "free_bytes", lambda _: 505_000_000)
    last = pulled(shelf_of(tmp_path, hub_card()))[-1]
    assert "the disk has room for 0.0 GB" in last.reason
    assert {asked.name for asked in mirror.asked} == {"", "model_index.json"}
    monkeypatch.setattr(shelf_module, "free_bytes", cache_module.free_bytes)
    assert pulled(shelf_of(tmp_path, hub_card()))[-1].state == "on_disk"


def test_two_who_want_a_model_get_one_download(tmp_path: Path, mirror: Mirror) -> None:
    mirror.rate = 8e6
    shelf = shelf_of(tmp_path, hub_card())
    threads = [
        threading.Thread(target=shelf.want, args=("painter", str(number))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf.pull("painter")
    assert until(lambda: shelf.state("painter"))[-1].state == "on_disk"
    assert len(mirror.ranges(UNET)) == len(mirror.ranges("")) == 1


def test_two_processes_do_not_fetch_the_same_twice(tmp_path: Path, mirror: Mirror) -> None:
    mirror.rate = 8e6
    shelves = [shelf_of(tmp_path, hub_card()) for _ in range(2)]
    for shelf in shelves:
        shelf.pull("painter")
    for shelf in shelves:
        assert until(partial(shelf.state, "painter"))[-1].state == "on_disk"
    assert len(mirror.ranges(UNET)) == 1
