"""What a running job still costs, as the schedule sees it."""

from __future__ import annotations

import pytest

from app.domain.events import PhaseStarted, StepFinished
from app.domain.model_card import Defaults, ModelCard
from app.domain.progress import ProgressMeter
from app.domain.request import Arguments
from app.scheduling.batch_profile import BatchProfiles
from app.scheduling.expectations import Expectations
from app.scheduling.phase_times import PhaseTimes

CARD = ModelCard(
    id="painter",
    family="fake",
    source="/",
    tasks=("text2image",),
    defaults=Defaults(sampler="euler", width=256, height=256, num_inference_steps=4),
)
REQUEST = CARD.resolve(Arguments(prompt="a fox"), draw_seed=lambda: 1)


def test_a_running_job_stands_as_far_as_its_meter_has_come() -> None:
    expectations = Expectations(PhaseTimes(), BatchProfiles(), lambda *_: 7)
    meter = ProgressMeter(0.0)
    meter.begin({"initializing": 1.0, "generating": 8.0, "post_processing": 0.5})

    def standing(now: float) -> tuple[float, ...]:
        one = expectations.running("job", CARD, REQUEST, "cpu", (0, 3.0), meter, now)
        assert (one.rank, one.kind, one.memory) == ((0, 3.0), ("painter", 256, 256), 7)
        return one.before, one.steps, one.after, one.pace, one.under_way

    meter.observe(PhaseStarted("initializing"), 0.0)
    assert standing(0.25) == (0.75, 8.0, 0.5, 0.0, 0.0)
    meter.observe(PhaseStarted("generating", 4), 1.0)
    meter.observe(StepFinished(1), 3.0)
    assert standing(3.5) == pytest.approx((0.0, 6.0, 0.5, 2.0, 0.5))
    meter.observe(PhaseStarted("post_processing"), 9.0)
    assert standing(9.25) == (0.0, 0.0, 0.25, 0.0, 0.0)
