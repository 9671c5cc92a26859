"""One definition of every event crosses every wire: nothing is lost, and kinds never mix."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from app.domain.events import (
    TERMINAL,
    EngineEvent,
    Event,
    Expired,
    Failed,
    ImageFinished,
    ImageReady,
    JobCancelled,
    JobEvent,
    NumberedEvent,
    PhaseStarted,
    Progressed,
    Queued,
    Started,
    StepFinished,
    Succeeded,
    Waited,
)

RAW = bytes(range(256))
ENGINE_EVENTS: list[EngineEvent] = [
    PhaseStarted("preparing"),
    PhaseStarted("generating", 40),
    StepFinished(3),
    StepFinished(4, RAW),
    StepFinished(5, None, 4, 0.25),
    Waited(),
    ImageFinished(1, RAW, 2**32 - 1, "image/png"),
    ImageFinished(1, RAW, 7, "image/png", 3, thumbnail=RAW),
]
JOB_EVENTS: list[JobEvent] = [
    Queued(2, 12.5, "waiting_for_worker"),
    Started("local-0", 2),
    Progressed("queued", 0.0, 0.0, 9.25, "Wartend … 画"),
    Progressed("generating", 55.0, 0.5, 1.5, "Generating step 10/20", 10, 20, RAW),
    ImageReady(0, "01JXXXXXXXXXXXXXXXXXXXXXXX", 77),
    Succeeded(),
    Failed("out_of_memory", "There is no room."),
    JobCancelled(),
    Expired("deadline_exceeded", "Too late."),
]


@pytest.mark.parametrize("event", ENGINE_EVENTS, ids=lambda event: type(event).__name__)
def test_engine_events_survive_both_wires(event: EngineEvent) -> None:
    packed = msgspec.msgpack.encode(event)
    assert msgspec.msgpack.decode(packed, type=EngineEvent) == event
    text = msgspec.json.encode(event)
    assert msgspec.json.decode(text, type=EngineEvent) == event


@pytest.mark.parametrize("event", JOB_EVENTS, ids=lambda event: type(event).__name__)
def test_numbered_job_events_survive_both_wires(event: JobEvent) -> None:
    numbered = NumberedEvent(5, 1_790_000_000.123456, event)
    packed = msgspec.msgpack.encode(numbered)
    assert msgspec.msgpack.decode(packed, type=NumberedEvent) == numbered
    text = msgspec.json.encode(numbered)
    assert msgspec.json.decode(text, type=NumberedEvent) == numbered


def test_every_kind_of_event_is_looked_at_here() -> None:
    assert {type(event) for event in ENGINE_EVENTS} == set(get_args(EngineEvent))
    assert {type(event) for event in JOB_EVENTS} == set(get_args(JobEvent))


def test_the_tag_on_the_wire_is_called_type_and_says_the_kind() -> None:
    tags = {msgspec.to_builtins(event)["type"]: type(event) for event in JOB_EVENTS}
    assert tags == {
        "queued": Queued,
        "started": Started,
        "progressed": Progressed,
        "image_ready": ImageReady,
        "succeeded": Succeeded,
        "failed": Failed,
        "cancelled": JobCancelled,
        "expired": Expired,
    }


@pytest.mark.parametrize("event", [*ENGINE_EVENTS, *JOB_EVENTS], ids=repr)
def test_one_family_is_never_taken_for_the_other(event: Event) -> None:
    other = JobEvent if isinstance(event, EngineEvent) else EngineEvent
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=other)


def test_exactly_four_kinds_end_a_job() -> None:
    assert set(TERMINAL) == {Succeeded, Failed, JobCancelled, Expired}


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        StepFinished(1).step = 2  # type: ignore[misc]


def test_a_phase_that_does_not_exist_is_refused() -> None:
    wire = {"type": "phase_started", "phase": "dreaming"}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wire, type=EngineEvent)
