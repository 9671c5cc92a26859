"""How many pictures share a forward, and what it costs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.scheduling.batch_profile import BatchProfile, BatchProfiles, profile_of

GAINS = {1: 1.0, 2: 1.2, 4: 2.0, 8: 7.6}


def profiles(seconds: dict[int, float] = GAINS, file: Path | None = None) -> BatchProfiles:
    known = BatchProfiles(file)
    known.learn(profile_of("m", "cpu", (256, 256), seconds))
    return known


@pytest.mark.parametrize(
    ("seconds", "cap"),
    [
        (GAINS, 4),  # eight would cost 0.95 each
        ({1: 1.0, 2: 1.79, 4: 3.59}, 4),
        ({1: 1.0, 2: 1.81, 4: 4.0}, 1),
        ({1: 1.0, 2: 2.0, 4: 3.0}, 4),  # the largest that pays, though two do not
        ({1: 1.0}, 1),
        ({}, 1),
        ({2: 1.0}, 1),
        ({1: 0.0, 2: 0.0}, 1),
    ],
)
def test_the_cap_is_the_largest_number_that_pays(seconds: dict[int, float], cap: int) -> None:
    assert profiles(seconds).cap("m", "cpu", 256, 256) == cap


@pytest.mark.parametrize(("side", "cap"), [(64, 4), (256, 4), (360, 2), (512, 1), (2048, 1)])
def test_larger_pictures_share_with_fewer(side: int, cap: int) -> None:
    assert profiles().cap("m", "cpu", side, side) == cap


def test_what_was_never_measured_is_not_shared() -> None:
    known = profiles()
    assert known.cap("other", "cpu", 256, 256) == 1
    assert known.cap("m", "cuda", 256, 256) == 1
    assert known.slowdown("other", "cpu", 256, 256, 4) == 1.0
    assert (known.wants("m", "cpu", 256, 256), known.wants("m", "cpu", 512, 512)) == (False, True)


def test_nothing_is_shared_or_measured_when_it_is_switched_off(tmp_path: Path) -> None:
    file = tmp_path / "profiles.json"
    profiles(file=file)
    off = BatchProfiles(file, enabled=False)
    assert off.cap("m", "cpu", 256, 256) == 1
    assert not off.wants("n", "cpu", 256, 256)


@pytest.mark.parametrize(
    ("count", "slower"), [(1, 1.0), (2, 1.2), (3, 1.6), (4, 2.0), (6, 4.8), (8, 7.6), (16, 15.2)]
)
def test_the_slowdown_is_measured_or_between_what_was(count: int, slower: float) -> None:
    assert profiles().slowdown("m", "cpu", 256, 256, count) == pytest.approx(slower)


def test_larger_pictures_slow_each_other_down_more() -> None:
    known = profiles()
    small, large = (known.slowdown("m", "cpu", side, side, 2) for side in (256, 362))
    assert small == pytest.approx(1.2)
    assert large == pytest.approx(2.0 / 1.2, rel=0.02)


def test_it_survives_a_restart_and_damage(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "profiles.json"
    profiles(file=file)
    profiles({}, tmp_path / "deep" / "other.json")
    assert BatchProfiles(file).cap("m", "cpu", 256, 256) == 4
    assert not BatchProfiles(tmp_path / "deep" / "other.json").wants("m", "cpu", 256, 256)
    assert sorted(path.name for path in file.parent.iterdir()) == ["other.json", "profiles.json"]
    file.write_bytes(file.read_bytes()[:-9])
    assert BatchProfiles(file).wants("m", "cpu", 256, 256)


def test_the_nearest_size_speaks() -> None:
    known = profiles()
    known.learn(BatchProfile("m", "cpu", 512, 512, {1: 1.0, 2: 1.0}))
    assert known.cap("m", "cpu", 480, 480) == 2
    assert known.cap("m", "cpu", 256, 264) == 3
