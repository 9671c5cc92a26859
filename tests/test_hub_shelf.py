"""Who makes room, who stays, and when a download ends that nobody wants any more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.domain.errors import InvalidRequest, ModelInUse, ModelUnavailable
from app.model_files import shelf as shelf_module
from tests.hub_mirror import Mirror
from tests.shelves import REPO, UNET, hub_card, pulled, repository, shelf_of, until

OTHER = "tests/other"
THIRD = "tests/third"


@pytest.fixture
def three(tmp_path: Path, mirror: Mirror) -> Mirror:
    for number, repo in enumerate((OTHER, THIRD)):
        folder = repository(tmp_path / repo)
        (folder / "unet" / "config.json").write_bytes(
            (folder / "unet" / "config.json").read_bytes() + b" " * number
        )
        mirror.folders[repo] = folder
    return mirror


def size_of(folder: Path) -> int:
    shelf = shelf_of(folder, hub_card())
    return pulled(shelf)[-1].bytes_total


def test_the_one_used_least_recently_makes_room(tmp_path: Path, three: Mirror) -> None:
    one = size_of(tmp_path / "measured")
    names = {"a": REPO, "b": OTHER, "c": THIRD}
    known = [hub_card(name, source=f"hub:{repo}") for name, repo in names.items()]
    shelf = shelf_of(tmp_path, *known, max_disk=int(2.5 * one))
    assert pulled(shelf, "a")[-1].state == pulled(shelf, "b")[-1].state == "on_disk"
    time.sleep(0.01)
    shelf.used("a")
    assert pulled(shelf, "c")[-1].state == "on_disk"
    assert [shelf.state(name).state for name in names] == ["on_disk", "not_downloaded", "on_disk"]
    left = [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left if not path.is_symlink()) < 2.1 * one
    again = shelf_of(tmp_path, *known, max_disk=int(2.5 * one))  # who was used is remembered
    assert pulled(again, "b")[-1].state == "on_disk"
    assert [again.state(name).state for name in names] == ["not_downloaded", "on_disk", "on_disk"]


def test_who_is_pinned_used_or_waited_for_stays(tmp_path: Path, three: Mirror) -> None:
    one = size_of(tmp_path / "measured")
    known = [
        hub_card(name, source=f"hub:{repo}")
        for name, repo in {"a": REPO, "b": OTHER, "c": THIRD}.items()
    ]
    shelf = shelf_of(tmp_path, *known, max_disk=int(2.5 * one), pinned=("a",))
    assert pulled(shelf, "a")[-1].state == pulled(shelf, "b")[-1].state == "on_disk"
    shelf.busy = lambda: {"b"}
    last = pulled(shelf, "c")[-1]
    assert last.state == "unavailable"
    assert "max_disk" in last.reason
    assert not three.ranges("c")
    shelf.busy = lambda: ()
    shelf.want("b", "a job")
    assert pulled(shelf, "c")[-1].state == "unavailable"
    shelf.release("b", "a job")
    assert pulled(shelf, "c")[-1].state == "on_disk"
    assert shelf.state("b").state == "not_downloaded"


def test_a_model_that_is_too_large_for_the_limit_takes_nobody_along(
    tmp_path: Path, three: Mirror
) -> None:
    one = size_of(tmp_path / "measured")
    shelf = shelf_of(tmp_path, hub_card(), max_disk=one // 2)
    assert "max_disk" in pulled(shelf)[-1].reason


def test_a_download_that_only_a_job_wanted_ends_with_it(tmp_path: Path, mirror: Mirror) -> None:
    mirror.rate = 2e6
    shelf = shelf_of(tmp_path, hub_card())
    shelf.want("painter", "one")
    shelf.want("painter", "two")
    while mirror.sent.get(UNET, 0) < 1_000_000:
        assert shelf.state("painter").state == "downloading"
    shelf.release("painter", "one")
    assert shelf.state("painter").state == "downloading"
    shelf.release("painter", "two")
    assert shelf.state("painter").state == "not_downloaded"
    time.sleep(0.2)
    sent = mirror.sent[UNET]
    time.sleep(0.3)
    assert mirror.sent[UNET] <= sent + 200_000  # what was on its way
    mirror.rate = 0.0
    shelf.want("painter", "three")
    assert until(lambda: shelf.state("painter"))[-1].state == "on_disk"
    assert mirror.ranges(UNET)[-1] is not None  # it went on


def test_what_an_administrator_pulled_comes_to_its_end(tmp_path: Path, mirror: Mirror) -> None:
    mirror.rate = 20e6
    shelf = shelf_of(tmp_path, hub_card())
    shelf.want("painter", "one")
    shelf.pull("painter")
    shelf.release("painter", "one")
    assert until(lambda: shelf.state("painter"))[-1].state == "on_disk"


def test_a_job_may_not_start_a_download_where_only_pulls_do(tmp_path: Path, mirror: Mirror) -> None:
    shelf = shelf_of(tmp_path, hub_card(), auto=False)
    shelf.want("painter", "one")
    assert shelf.state("painter").state == "not_downloaded"
    assert mirror.asked == []


def test_removing_gives_the_disk_back_and_spares_what_is_shared(
    tmp_path: Path, mirror: Mirror
) -> None:
    shelf = shelf_of(tmp_path, hub_card("a"), hub_card("b"))
    size = pulled(shelf, "a")[-1].bytes_total
    assert pulled(shelf, "b")[-1].state == "on_disk"
    shelf.busy = lambda: {"a"}
    with pytest.raises(ModelInUse):
        shelf.remove("a")
    shelf.busy = lambda: ()
    assert shelf.remove("a") == 0
    assert shelf.state("b").state == "on_disk"
    lone = shelf_of(tmp_path / "lone", hub_card())
    assert pulled(lone)[-1].state == "on_disk"
    assert lone.remove("painter") == size
    assert lone.state("painter").state == "not_downloaded"
    assert not list((tmp_path / "lone" / "hub").rglob("*.safetensors"))
    assert pulled(lone)[-1].state == "on_disk"


def test_what_was_not_fetched_is_not_removed(tmp_path: Path) -> None:
    folder = repository(tmp_path / "mine")
    shelf = shelf_of(tmp_path, hub_card(source=str(folder), revision=""))
    assert shelf.state("painter").state == "on_disk"
    with pytest.raises(InvalidRequest, match="not fetched"):
        shelf.remove("painter")
    assert folder.is_dir()


def test_a_folder_that_lacks_something_is_unavailable_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_LOOK_SECONDS", 0.0)
    folder = repository(tmp_path / "mine")
    weights = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(weights[:-1])
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    shelf = shelf_of(tmp_path, hub_card(source=str(folder), revision=""))
    state = shelf.state("painter")
    assert state.state == "unavailable"
    assert "part unet has weights that are cut short" in state.reason
    assert str(tmp_path) not in state.reason
    (folder / UNET).write_bytes(weights)
    assert shelf.state("painter").state == "on_disk"


def test_weights_that_a_worker_could_not_load_are_told(tmp_path: Path, mirror: Mirror) -> None:
    shelf = shelf_of(tmp_path, hub_card())
    pulled(shelf)
    shelf.note("painter", ModelUnavailable("The weights of model painter cannot be loaded."))
    assert shelf.state("painter").state == "unavailable"
    assert "cannot be loaded" in shelf.state("painter").reason
    assert shelf.local("painter") is not None  # the worker knows when to try again
    shelf.note("painter", None)
    assert shelf.state("painter").state == "on_disk"


def test_a_failed_download_is_tried_again_with_growing_pauses(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_FIRST_PAUSE", 0.2)
    mirror.statuses = [404, 404]
    shelf = shelf_of(tmp_path, hub_card())
    shelf.want("painter", "one")
    last = until(lambda: shelf.state("painter"))[-1]
    assert 0.0 < (last.retry_in or 0.0) <= 0.2
    shelf.want("painter", "two")
    assert shelf.state("painter").state == "unavailable"
    time.sleep(0.25)
    shelf.want("painter", "three")
    last = until(lambda: shelf.state("painter"))[-1]
    assert 0.2 < (last.retry_in or 0.0) <= 0.4
    time.sleep(0.45)
    shelf.want("painter", "four")
    assert until(lambda: shelf.state("painter"))[-1].state == "on_disk"
