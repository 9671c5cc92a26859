"""A job: one client's wish from queue to end, as the fold of its events."""

from __future__ import annotations

from typing import Literal, Self, assert_never

import msgspec

from app.domain.errors import EaselError, ModelNotFetched, error_from
from app.domain.events import (
    Expired,
    Failed,
    ImageReady,
    JobCancelled,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
    Succeeded,
)
from app.domain.request import GenerationRequest, Terms

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]


class JobImage(msgspec.Struct, frozen=True):
    index: int
    image_id: str
    seed: int


class Job(msgspec.Struct, kw_only=True):
    """What is known of a job now. `created` and `changed` are Unix seconds.

    `progress` is 0 to 100, `fraction` 0 to 1, `eta_seconds` what remained at `changed`. For `grace`
    seconds it goes on when nobody waits for it any more. `digest` and `key` tell a repeated request.
    `instead` is what may be drawn in the place of `request`, without pictures, the first choice first.
    """

    id: str
    owner: str
    door: str
    request: GenerationRequest
    created: float
    changed: float
    terms: Terms = Terms()
    grace: float = 0.0
    digest: str = ""
    key: str | None = None
    webhook: str | None = None
    instead: tuple[GenerationRequest, ...] = ()
    last_event: int = 0
    status: Status = "queued"
    attempt: int = 0
    worker: str = ""
    position: int = 0
    progress: float = 0.0
    fraction: float = 0.0
    eta_seconds: float = 0.0
    message: str = ""
    step: int | None = None
    total_steps: int | None = None
    prompt_tokens: int = 0
    images: dict[int, JobImage] = msgspec.field(default_factory=dict)
    error_code: str | None = None
    error_message: str | None = None
    error_param: str | None = None
    error_retry_after: int | None = None

    @classmethod
    def imagined(cls, request: GenerationRequest, owner: str, terms: Terms, now: float) -> Self:
        """A job that nobody has submitted, to ask what would become of it."""
        return cls(
            id="guest",
            owner=owner,
            door="",
            request=request,
            created=now,
            changed=now,
            terms=terms,
        )

    @property
    def error(self) -> EaselError:
        """What it failed with, or expired."""
        error = error_from(self.error_code or "", self.error_message or "", self.error_param)
        if isinstance(error, ModelNotFetched) and self.error_retry_after is not None:
            error.retry_after = self.error_retry_after
        return error

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")

    def eta_at(self, now: float) -> float:
        """Seconds that remain at `now`: the last estimate, less the time that has passed since."""
        return 0.0 if self.ended else max(0.0, self.eta_seconds - max(0.0, now - self.changed))

    def apply(self, numbered: NumberedEvent) -> None:
        """Take in one event; this is the only way that a job changes."""
        self.changed, self.last_event = numbered.timestamp, numbered.number
        event = numbered.event
        match event:
            case Queued():
                self.status, self.position = "queued", event.position
                self.eta_seconds, self.message = event.eta_seconds, event.reason
            case Started():
                self.status, self.position = "running", 0
                self.worker, self.attempt = event.worker, event.attempt
                self._draw_with(event.model)
            case Progressed():
                self.progress, self.fraction = event.progress, event.fraction
                self.eta_seconds, self.message = event.eta_seconds, event.message
                self.step, self.total_steps = event.step, event.total_steps
            case ImageReady():
                self.images[event.index] = JobImage(event.index, event.image_id, event.seed)
                self.prompt_tokens = event.prompt_tokens
            case Succeeded():
                self.status, self.progress, self.fraction = "succeeded", 100.0, 1.0
                self.eta_seconds = 0.0
            case Failed():
                self.status, self.eta_seconds = "failed", 0.0
                self.error_code, self.error_message = event.code, event.message
                self.error_param, self.error_retry_after = event.param, event.retry_after
            case Expired():
                self.status, self.eta_seconds = "expired", 0.0
                self.error_code, self.error_message = event.code, event.message
            case JobCancelled():
                self.status, self.eta_seconds = "cancelled", 0.0
            case _:
                assert_never(event)

    def _draw_with(self, model: str) -> None:
        """Another model draws than so far, if it is one of those that may."""
        for request in self.instead:
            if request.model == model != self.request.model:
                self.request = request.with_pictures_of(self.request)
                return
