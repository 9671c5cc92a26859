"""Who may start beside whom."""

from __future__ import annotations

import pytest

from app.domain.lora import Lora
from app.scheduling.admission import (
    BACKGROUND,
    INTERACTIVE,
    Room,
    Standing,
    may_start,
    next_to_start,
    rank_beside,
)

ROOM = Room(capacity=8, held={"m": 0, "x": 0}, max_models=2)


def job(
    id: str = "j",
    model: str = "m",
    side: int = 64,
    rank: tuple[int, float] = (INTERACTIVE, 5.0),
    **rest: float | bool | tuple[Lora, ...],
) -> Standing:
    given = {"steps": 10.0, "cap": 1, **rest}
    return Standing(id=id, kind=(model, side, side), rank=rank, **given)  # type: ignore[arg-type]


RUNNING = job("r", rank=(INTERACTIVE, 1.0))


def test_an_idle_slot_takes_anybody() -> None:
    assert may_start(job(model="never seen", alone=True), [], ROOM)


def test_a_full_slot_takes_nobody() -> None:
    urgent = job(rank=(INTERACTIVE, 0.0), steps=0.1)
    assert not may_start(urgent, [RUNNING] * 8, ROOM)
    assert may_start(urgent, [RUNNING] * 7, ROOM)


def test_an_equal_waits_for_the_end() -> None:
    assert not may_start(job(), [RUNNING], ROOM)


def test_alike_jobs_share_up_to_the_cap_with_all_their_pictures() -> None:
    running = [job("a", cap=4, pictures=2), job("b", cap=4)]
    assert may_start(job(cap=4), running, ROOM)
    assert not may_start(job(cap=4, pictures=2), running, ROOM)
    assert not may_start(job(cap=2), running, ROOM)
    assert not may_start(job(cap=4), [job("a", cap=1)], ROOM)  # one that shares with nobody


@pytest.mark.parametrize(
    "other", [job(cap=4, side=128), job(cap=4, model="x"), job(cap=4, rank=(BACKGROUND, 5.0))]
)
def test_other_sizes_models_and_classes_do_not_share(other: Standing) -> None:
    assert not may_start(other, [job("a", cap=4)], ROOM)


def test_only_pictures_with_the_same_loras_share() -> None:
    running = [job("a", cap=4, loras=(Lora("snow", 0.5),))]
    assert may_start(job(cap=4, loras=(Lora("snow", 0.5),)), running, ROOM)
    for loras in ((), (Lora("snow", 0.6),), (Lora("ice", 0.5),)):
        assert not may_start(job(cap=4, loras=loras), running, ROOM)


def test_a_batch_that_itself_stands_behind_others_is_not_joined() -> None:
    running = [job("long", cap=4, rank=(INTERACTIVE, 3.0)), job("ahead", side=128, rank=(0, 1.0))]
    assert not may_start(job(cap=4), running, ROOM)


def test_an_interactive_job_goes_before_background_ones_but_not_before_others() -> None:
    background = job("b", rank=(BACKGROUND, 0.0))
    assert may_start(job(), [background], ROOM)
    assert not may_start(job(), [background, RUNNING], ROOM)
    assert not may_start(job(rank=(BACKGROUND, 0.0)), [job("b", rank=(BACKGROUND, 1.0))], ROOM)


def test_a_much_shorter_job_goes_before_its_equals_if_it_is_due_before_them() -> None:
    running = job("r", rank=(INTERACTIVE, 80.0), steps=10.0)
    assert may_start(job(steps=2.4), [running], ROOM)
    assert not may_start(job(steps=2.6), [running], ROOM)
    assert not may_start(job(steps=2.4, rank=(INTERACTIVE, 90.0)), [running], ROOM)
    nearly_done = job("n", rank=(INTERACTIVE, 80.0), steps=1.0)
    assert not may_start(job(steps=2.4), [running, nearly_done], ROOM)


def test_a_model_that_is_not_held_is_loaded_beside_others_for_interactive_jobs_if_it_fits() -> None:
    background = job("b", rank=(BACKGROUND, 0.0))
    assert may_start(job(model="new"), [background], ROOM)
    assert not may_start(job(model="new"), [background], Room(8, {"m": 0}, max_models=1))
    small = Room(8, {"m": 6}, memory=10)
    of_six = job("b", rank=(BACKGROUND, 0.0), memory=6)
    assert may_start(job(model="new", memory=4), [of_six], small)
    assert not may_start(job(model="new", memory=5), [of_six], small)


def test_the_next_may_start_while_the_last_is_being_decoded() -> None:
    decoding = job("r", steps=0.0, after=1.0)
    assert may_start(job(), [decoding], ROOM)
    assert not may_start(job(), [decoding, RUNNING], ROOM)


def test_a_second_attempt_is_alone() -> None:
    running = [job("r", rank=(BACKGROUND, 9.0), cap=4)]
    assert not may_start(job(alone=True), running, ROOM)
    assert not may_start(job(), [job("r", rank=(BACKGROUND, 9.0), alone=True)], ROOM)


def test_who_joins_a_batch_takes_its_rank() -> None:
    batch = [job("a", cap=4, rank=(INTERACTIVE, 1.0))]
    assert rank_beside(job(cap=4), batch) == (INTERACTIVE, 1.0)
    assert rank_beside(job(cap=4, rank=(INTERACTIVE, 0.5)), batch) == (INTERACTIVE, 0.5)
    assert rank_beside(job(side=128), batch) == (INTERACTIVE, 5.0)
    assert rank_beside(job(), []) == (INTERACTIVE, 5.0)


def test_others_pass_one_who_cannot_start_until_its_patience_ends() -> None:
    running = [job("a", cap=4)]
    stuck, joining = job("stuck", side=128, patience=3.0), job("joining", cap=4)
    assert next_to_start([stuck, joining], running, ROOM) is joining
    stuck.patience = 0.0
    assert next_to_start([stuck, joining], running, ROOM) is None
    assert next_to_start([stuck, joining], [], ROOM) is stuck
    assert next_to_start([], [], ROOM) is None
