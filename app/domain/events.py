"""What happened, in the past tense, as tagged values.

Engine events come up from an engine and know nothing of jobs, percent or clients. Job events are what
the rest of the house sees: numbered from 1, kept, replayed. One definition crosses threads, sockets,
server-sent events and files.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal[
    "queued",
    "initializing",
    "loading_model",
    "preparing",
    "generating",
    "post_processing",
    "complete",
    "error",
]


class Event(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of both families; `type` is the tag on every wire."""


# -- engine events ---------------------------------------------------------------------------------


class PhaseStarted(Event, frozen=True, tag="phase_started"):
    """A phase began. `total_steps` is given with `generating`: steps of all n images together."""

    phase: Phase
    total_steps: int | None = None


class StepFinished(Event, frozen=True, tag="step_finished"):
    """Denoising step `step` (1 to total) is done; `preview` is a small encoded picture or nothing.

    It is one of picture `index`. `batch` pictures shared its forward; for `waited` seconds it stood
    behind others' work.
    """

    step: int
    preview: bytes | None = None
    batch: int = 1
    waited: float = 0.0
    index: int = 0


class ImageFinished(Event, frozen=True, tag="image_finished"):
    """Image `index` (from 0) is drawn and encoded; `media_type` says how.

    `prompt_tokens` is how many tokens the text encoder made of the prompt. `thumbnail` is a small
    WebP that tells nothing of itself, or None where the picture is small enough to serve as one.
    """

    index: int
    image: bytes
    seed: int
    media_type: str
    prompt_tokens: int = 0
    thumbnail: bytes | None = None


class Waited(Event, frozen=True, tag="waited"):
    """The run is alive and stands behind others' work on its device."""


EngineEvent = PhaseStarted | StepFinished | ImageFinished | Waited

# -- job events ------------------------------------------------------------------------------------


class Queued(Event, frozen=True, tag="queued"):
    """The job waits at `position` (1 is next); `eta_seconds` is until it is *finished*.

    `reason` says why it waits: a word, and what may be told of the others ("behind 2 jobs, ~3.4 s").
    `progress` is above 0 if its model's files had to be fetched first.
    """

    position: int
    eta_seconds: float
    reason: str
    progress: float = 0.0


class Started(Event, frozen=True, tag="started"):
    """A worker took the job. `attempt` counts from 1; a second one follows the loss of a worker, or a
    `model` that could not be loaded, and then another one draws. ("" in events of earlier versions.)"""

    worker: str
    attempt: int
    model: str = ""


class Progressed(Event, frozen=True, tag="progressed"):
    """How far the job is.

    `progress` is 0 to 100 by the fixed weights of the phases; `fraction` is 0 to 1 by measured
    seconds, and `eta_seconds` the seconds that remain, both for the whole job. A `preview` is of
    picture `image_index`.
    """

    phase: Phase
    progress: float
    fraction: float
    eta_seconds: float
    message: str
    step: int | None = None
    total_steps: int | None = None
    preview: bytes | None = None
    image_index: int | None = None


class ImageReady(Event, frozen=True, tag="image_ready"):
    """Picture `index` (from 0) can be fetched under `image_id`."""

    index: int
    image_id: str
    seed: int
    prompt_tokens: int = 0


class Succeeded(Event, frozen=True, tag="succeeded"):
    pass


class Failed(Event, frozen=True, tag="failed"):
    """`code` is one of `domain.errors`, `message` a sentence for the client, `param` a field's name,
    `retry_after` seconds after which it may be asked again."""

    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None


class JobCancelled(Event, frozen=True, tag="cancelled"):
    pass


class Expired(Event, frozen=True, tag="expired"):
    """The job's deadline came first. `code` and `message` are those of a failure."""

    code: str
    message: str


JobEvent = Queued | Started | Progressed | ImageReady | Succeeded | Failed | JobCancelled | Expired

TERMINAL = (Succeeded, Failed, JobCancelled, Expired)


class NumberedEvent(msgspec.Struct, frozen=True):
    """A job event at its place: `number` counts from 1 without gaps, `timestamp` is Unix seconds."""

    number: int
    timestamp: float
    event: JobEvent
