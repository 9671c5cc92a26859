"""The schedule, played through: what is foretold is what the rules make of it."""

from __future__ import annotations

import math

import msgspec
import pytest

from app.scheduling.admission import Kind, Room, Standing
from app.scheduling.forecast import Outlook, Place, forecast


def job(id: str, *, due: float = 0.0, rank: int = 0, model: str = "m", **rest: float) -> Standing:
    given = {"before": 0.0, "steps": 10.0, "after": 0.0, "patience": 100.0, **rest}
    return Standing(id=id, kind=(model, 64, 64), rank=(rank, due), **given)  # type: ignore[arg-type]


def place(*running: Standing, free: float = 0.0, held: str = "m", max_models: int = 0) -> Place:
    room = Room(8, dict.fromkeys(held.split(), 0), max_models)
    return Place(free, room, list(running))


def alone(_: Kind, __: int) -> float:
    return 1.0


def tenth_more(_: Kind, count: int) -> float:
    """Each further picture makes a forward a tenth longer."""
    return 1.0 + 0.1 * (count - 1)


def ends(told: dict[str, Outlook]) -> dict[str, float]:
    return {name: round(one.end, 6) for name, one in told.items()}


def test_a_job_alone_takes_its_time() -> None:
    told = forecast([place()], [job("a", before=1, after=2)], alone)
    assert (told["a"].start, told["a"].end) == (0.0, 13.0)


def test_equals_run_one_after_the_other() -> None:
    waiting = [job("a", due=1), job("b", due=2), job("c", due=3)]
    assert ends(forecast([place()], waiting, alone)) == {"a": 10, "b": 20, "c": 30}


def test_the_next_begins_while_the_last_is_decoded_and_goes_second() -> None:
    told = forecast([place()], [job("a", due=1, after=2), job("b", due=2)], alone)
    assert (told["b"].start, told["b"].end) == (10.0, 22.0)


def test_jobs_that_share_slow_each_other_down_as_measured() -> None:
    waiting = [job("a", cap=2), job("b", cap=2, steps=5.0)]
    # b's five seconds take 5.5 together; a then has five left and is alone.
    assert ends(forecast([place()], waiting, tenth_more)) == {"b": 5.5, "a": 10.5}


def test_a_third_waits_until_there_is_room_in_the_batch() -> None:
    waiting = [job("a", cap=2), job("b", cap=2, steps=5.0), job("c", cap=2)]
    told = forecast([place()], waiting, tenth_more)
    assert told["c"].start == pytest.approx(5.5)
    assert told["a"].end == pytest.approx(5.5 + 5.5)
    assert told["c"].end == pytest.approx(11.0 + 5.0)


def test_pictures_of_one_job_are_in_its_seconds_already() -> None:
    both = [job("a", cap=4, pictures=2)]
    assert ends(forecast([place()], both, tenth_more)) == {"a": 10.0}
    beside = [*both, job("b", cap=4, pictures=2)]
    assert forecast([place()], beside, tenth_more)["a"].end == pytest.approx(10.0 * 1.3 / 1.1)


def test_a_running_background_job_stands_while_an_interactive_one_runs() -> None:
    told = forecast([place(job("b", rank=1, steps=8.0))], [job("i", steps=3.0)], alone)
    assert ends(told) == {"i": 3.0, "b": 11.0}


def test_a_step_that_was_begun_is_done_first() -> None:
    running = job("b", rank=1, steps=8.0, pace=1.0, under_way=0.4)
    told = forecast([place(running)], [job("i", steps=3.0)], alone)
    assert ends(told) == {"i": 3.6, "b": 10.6}
    assert ends(forecast([place(running)], [], alone)) == {"b": 7.6}


def test_a_step_of_which_nothing_was_heard_for_long_is_about_to_end() -> None:
    running = job("b", rank=1, steps=8.0, pace=1.0, under_way=30.0)
    told = forecast([place(running)], [job("i", steps=3.0)], alone)
    assert ends(told) == {"i": 3.0, "b": 10.0}


def test_a_shared_step_that_was_begun_takes_as_long_as_it_does_together() -> None:
    running = [
        job("a", rank=1, cap=2, pace=1.0, under_way=0.55),
        job("b", rank=1, cap=2, pace=1.0, under_way=0.55),
    ]
    told = forecast([place(*running)], [job("i", steps=3.0)], tenth_more)
    assert told["i"].end == pytest.approx(0.55 + 3.0)  # of 1.1 the half is over
    assert told["a"].end == pytest.approx(1.1 * 10.0 - 0.55 + 3.0)


def test_decoding_that_was_begun_is_done_before_anybody_elses_turn() -> None:
    decoded = job("a", due=5, steps=0.0, after=2.0)
    told = forecast([place(decoded)], [job("b", due=1, steps=3.0)], alone)
    assert ends(told) == {"a": 2.0, "b": 5.0}
    drawn = job("a", due=5, after=2.0)
    told = forecast([place(drawn)], [job("b", due=1, steps=4.0)], alone)
    assert ends(told) == {"a": 12.0, "b": 16.0}


def test_a_prompt_goes_before_the_steps_of_its_class_that_can_be_shared() -> None:
    running = [job("a", due=1, cap=2), job("b", due=2, cap=2, before=1.0, steps=5.0)]
    assert ends(forecast([place(*running)], [], alone)) == {"b": 6.0, "a": 11.0}
    for one in running:
        one.cap = 1
    assert ends(forecast([place(*running)], [], alone)) == {"a": 10.0, "b": 16.0}


def test_a_model_that_is_not_held_is_loaded_and_another_goes() -> None:
    waiting = [
        job("a", due=1, model="x", load=4.0),
        job("b", due=2, model="x", load=4.0),
        job("c", due=3, model="m", load=2.0),
    ]
    told = forecast([place(max_models=1)], waiting, alone)
    assert ends(told) == {"a": 14.0, "b": 24.0, "c": 36.0}
    assert ends(forecast([place()], waiting, alone)) == {"a": 14.0, "b": 24.0, "c": 34.0}


def test_a_slot_that_is_not_there_yet_begins_later() -> None:
    told = forecast([place(free=7.0)], [job("a")], alone)
    assert (told["a"].start, told["a"].end) == (7.0, 17.0)


def test_two_slots_share_the_queue() -> None:
    waiting = [job("a", due=1), job("b", due=2, steps=4.0), job("c", due=3)]
    assert ends(forecast([place(), place()], waiting, alone)) == {"a": 10, "b": 4, "c": 14}


def test_who_has_no_patience_left_closes_the_door() -> None:
    running = job("r", cap=4)
    other = msgspec.structs.replace(job("other", due=1), kind=("m", 128, 128))
    joining = job("joining", due=2, cap=4)
    waiting = [other, joining]
    assert forecast([place(running)], waiting, alone)["joining"].start == 0.0
    other.patience = 0.0
    told = forecast([place(running)], waiting, alone)
    assert (told["other"].start, told["joining"].start) == (10.0, 20.0)


def test_patience_ends_while_time_goes_by() -> None:
    running = job("r", cap=2, steps=20.0)
    other = msgspec.structs.replace(job("other", due=1, patience=8.0), kind=("m", 128, 128))
    quick = job("quick", due=2, cap=2, steps=10.0)
    late = job("late", due=3, cap=2)
    told = forecast([place(running)], [other, quick, late], alone)
    assert told["quick"].start == 0.0
    assert told["late"].start > told["other"].start == 20.0


def test_uncertainty_adds_up_as_squares() -> None:
    waiting = [job("a", due=1, spread=3.0), job("b", due=2, spread=4.0)]
    told = forecast([place()], waiting, alone)
    assert told["a"].end_p90 == pytest.approx(10 + 3)
    assert told["b"].end_p90 == pytest.approx(20 + 5)


def test_a_long_queue_is_foretold_to_its_end() -> None:
    waiting = [job(str(number), due=number) for number in range(200)]
    told = forecast([place()], waiting, alone)
    assert told["199"].end == pytest.approx(2000, rel=0.01)
    order = [told[str(number)].end for number in range(200)]
    assert order == sorted(order)
    assert all(math.isfinite(one.end_p90) and one.end_p90 >= one.end for one in told.values())


def test_nothing_that_is_given_is_changed() -> None:
    running, waiting = job("r"), job("w", due=1)
    given = place(running)
    before = msgspec.json.encode([running, waiting, given])
    forecast([given], [waiting], alone)
    assert msgspec.json.encode([running, waiting, given]) == before


def test_jobs_without_any_expected_work_end_at_once() -> None:
    waiting = [job("a", steps=0.0), job("b", due=1, steps=0.0)]
    assert ends(forecast([place(job("r", steps=0.0))], waiting, alone)) == {"r": 0, "a": 0, "b": 0}
