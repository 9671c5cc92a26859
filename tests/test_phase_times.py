"""Measured seconds: there is always an expectation, and it becomes true by measuring.

Promised: never measured, it is a prior; a relative of the same model on the same device is scaled
to the work; the very same kind of work is the median of its newest measurements. All of it survives
a restart, and a damaged file costs estimates only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import pytest

from app.domain.events import Phase
from app.domain.model_card import Defaults, Limits, ModelCard
from app.domain.progress import WORK_PHASES
from app.domain.request import Arguments, GenerationRequest
from app.scheduling.phase_times import PhaseTimes

CARD = ModelCard(
    id="painter",
    family="fake",
    source="/",
    tasks=("text2image", "image2image"),
    defaults=Defaults(sampler="euler", width=256, height=256, num_inference_steps=10),
    limits=Limits(max_side=2048),
)
MEASURED: dict[Phase, float] = {
    "initializing": 0.5,
    "loading_model": 3.0,
    "preparing": 0.25,
    "generating": 8.0,
    "post_processing": 1.0,
}


def wish(
    side: int = 256, steps: int = 10, n: int = 1, image: bytes | None = None, model: str = ""
) -> GenerationRequest:
    card = CARD.model_copy(update={"id": model or CARD.id})
    given = Arguments(
        prompt="a fox", width=side, height=side, num_inference_steps=steps, n=n, image=image
    )
    return card.resolve(given, draw_seed=lambda: 1)


def expect(
    times: PhaseTimes, request: GenerationRequest, device: str = "cpu", *, loaded: bool = False
) -> Mapping[Phase, float]:
    return times.expect(request, device, loaded=loaded)


def taught(request: GenerationRequest | None = None) -> PhaseTimes:
    times = PhaseTimes()
    times.learn(request or wish(), "cpu", MEASURED, loaded=False)
    return times


def test_a_fresh_installation_expects_something_for_every_phase() -> None:
    expected = expect(PhaseTimes(), wish())
    assert tuple(expected) == WORK_PHASES
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in expected.values())


def test_without_measurements_more_work_is_expected_to_take_longer_in_proportion() -> None:
    times = PhaseTimes()
    small, large = expect(times, wish(256, 10)), expect(times, wish(512, 20))
    assert large["generating"] == pytest.approx(8 * small["generating"])
    assert large["post_processing"] == pytest.approx(4 * small["post_processing"])
    assert large["loading_model"] == small["loading_model"]


def test_what_was_measured_once_is_expected_exactly() -> None:
    times = taught()
    assert expect(times, wish()) == MEASURED
    assert times.knows(wish(), "cpu")


@pytest.mark.parametrize(
    ("request_", "device"),
    [(wish(steps=11), "cpu"), (wish(264), "cpu"), (wish(), "cuda"), (wish(model="other"), "cpu")],
)
def test_other_work_is_not_known(request_: GenerationRequest, device: str) -> None:
    assert not taught().knows(request_, device)


def test_a_relative_is_scaled_to_the_work() -> None:
    expected = expect(taught(), wish(512, 20))
    assert expected["generating"] == pytest.approx(8.0 * 4 * 2)
    assert expected["post_processing"] == pytest.approx(1.0 * 4)
    assert expected["preparing"] == MEASURED["preparing"]
    assert expected["loading_model"] == MEASURED["loading_model"]


def test_the_nearest_relative_speaks() -> None:
    times = taught(wish(256, 10))
    times.learn(wish(1024, 10), "cpu", {"generating": 500.0}, loaded=True)
    assert expect(times, wish(288, 10))["generating"] == pytest.approx(8.0 * (288 / 256) ** 2)
    assert expect(times, wish(960, 10))["generating"] == pytest.approx(500 * (960 / 1024) ** 2)
    assert expect(times, wish(1024, 5))["generating"] == pytest.approx(250.0)


def test_an_edit_is_related_by_the_steps_that_really_run() -> None:
    edit = wish(steps=20, image=b"i")  # strength 0.75: 15 steps
    assert expect(taught(), edit)["generating"] == pytest.approx(8.0 * 15 / 10)


@pytest.mark.parametrize(("device", "model"), [("cuda", ""), ("cpu", "other")])
def test_another_device_or_model_is_no_relative(device: str, model: str) -> None:
    request = wish(model=model)
    assert expect(taught(), request, device) == expect(PhaseTimes(), request, device)


def test_several_images_take_their_number_of_times_to_draw_and_encode() -> None:
    one, three = expect(taught(), wish()), expect(taught(), wish(n=3))
    for phase in WORK_PHASES:
        times = 3 if phase in ("generating", "post_processing") else 1
        assert three[phase] == pytest.approx(times * one[phase])


def test_a_measurement_of_several_images_counts_for_one() -> None:
    times = taught(wish(n=4))
    assert expect(times, wish())["generating"] == 2.0
    assert expect(times, wish())["post_processing"] == 0.25
    assert expect(times, wish())["preparing"] == MEASURED["preparing"]
    assert expect(times, wish(n=4)) == MEASURED


def test_a_model_that_is_loaded_costs_no_load() -> None:
    assert expect(taught(), wish(), loaded=True) == {**MEASURED, "loading_model": 0.0}
    assert expect(PhaseTimes(), wish(), loaded=True)["loading_model"] == 0.0


def test_a_model_that_was_loaded_teaches_no_load() -> None:
    times = taught()
    times.learn(wish(), "cpu", {**MEASURED, "loading_model": 0.0}, loaded=True)
    assert expect(times, wish())["loading_model"] == MEASURED["loading_model"]


def test_a_wild_measurement_moves_no_expectation() -> None:
    times = taught()
    for seconds in (108.0, 8.0, 8.0, 0.01, 8.0, 500.0):
        times.learn(wish(), "cpu", {"generating": seconds}, loaded=True)
        assert expect(times, wish())["generating"] == 8.0


def test_old_measurements_are_forgotten() -> None:
    times = taught()
    for number in range(40):
        times.learn(wish(), "cpu", {"generating": float(number)}, loaded=True)
    assert 30 <= expect(times, wish())["generating"] <= 33


def test_pictures_that_share_forwards_count_as_so_many_rounds() -> None:
    times = taught()
    together = times.expect(wish(n=4), "cpu", loaded=True, rounds=1.5)
    assert together["generating"] == pytest.approx(1.5 * 8.0)
    assert together["post_processing"] == pytest.approx(4 * 1.0)
    times.learn(wish(n=4, steps=7), "cpu", {"generating": 6.0}, loaded=True, rounds=1.5)
    assert expect(times, wish(steps=7))["generating"] == pytest.approx(4.0)


def spread(times: PhaseTimes, request: GenerationRequest, *, loaded: bool = True) -> float:
    return times.spread(request, "cpu", loaded=loaded)


def test_nine_of_ten_runs_end_within_the_spread() -> None:
    times = PhaseTimes()
    for seconds in (10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 16.0, 90.0):
        times.learn(wish(), "cpu", {"generating": seconds}, loaded=True)
    known = spread(times, wish())
    assert known == pytest.approx(6.0, rel=0.05)  # the other phases are guesses, and short


def test_the_spread_shrinks_with_what_is_known_and_adds_up_as_squares() -> None:
    times = taught()
    once = spread(times, wish())
    assert once == pytest.approx(0.3 * math.hypot(0.5, 0.25, 8.0, 1.0))
    assert spread(times, wish(), loaded=False) > once
    for _ in range(15):
        times.learn(wish(), "cpu", MEASURED, loaded=False)
    assert spread(times, wish()) == pytest.approx(once / 4)
    assert spread(PhaseTimes(), wish()) > once / 4


def test_a_machine_that_became_faster_is_believed_after_a_dozen_runs() -> None:
    times = taught()
    for _ in range(12):
        times.learn(wish(), "cpu", {"generating": 2.0}, loaded=True)
    assert expect(times, wish())["generating"] == pytest.approx(2.0, rel=0.05)


def test_what_was_learnt_can_be_kept() -> None:
    times = taught()
    kept = times.unsaved()
    assert expect(PhaseTimes(kept), wish()) == MEASURED
    assert {one.phase for one in kept} == set(MEASURED)
    times.saved(kept)
    assert times.unsaved() == []


def test_what_was_learnt_while_it_was_kept_is_still_to_be_kept() -> None:
    times = taught()
    kept = times.unsaved()
    times.learn(wish(), "cpu", {"generating": 3.0}, loaded=True)
    times.saved(kept)
    (left,) = times.unsaved()
    assert (left.phase, left.samples[-1]) == ("generating", 3.0)


def test_what_cannot_be_a_time_is_not_taken_in() -> None:
    (one, *_) = taught().unsaved()
    damaged = msgspec.structs.replace(one, samples=[math.nan, math.inf])
    assert expect(PhaseTimes([damaged]), wish()) == expect(PhaseTimes(), wish())
