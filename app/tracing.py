"""Traces for OpenTelemetry, from the request over the job and its phases to the step.

A job is a span from submission to end, below the request that brought it; its phases are spans below
it, and steps are events of `generating`. Attributes hold models, sizes, counts and codes, and nothing
that a client wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import app
from app.domain.events import (
    TERMINAL,
    Expired,
    Failed,
    JobEvent,
    NumberedEvent,
    Progressed,
    Queued,
    Started,
)
from app.domain.job import Job

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class TracingMissing(Exception):
    """OpenTelemetry is not installed."""


class Tracing:
    """Sends spans to an OTLP collector at `endpoint`, such as "http://127.0.0.1:4318".

    Raises TracingMissing.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingMissing("traces need the extra: pip install 'easel[traces]'") from error
        about = Resource.create({"service.name": "easel", "service.version": app.__version__})
        self._provider = TracerProvider(resource=about)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("easel", app.__version__)
        self._jobs: dict[str, _JobTrace] = {}

    def close(self) -> None:
        """Send what is not sent yet. Blocks for some seconds at most."""
        self._provider.shutdown()

    # -- requests ----------------------------------------------------------------------------------

    @contextmanager
    def request(
        self, method: str, route: str, headers: Mapping[str, str]
    ) -> Iterator[Callable[[int], None]]:
        """A span around a request, below the one that its headers tell of; call with the status."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        above = TraceContextTextMapPropagator().extract(dict(headers))
        about = {"http.request.method": method, "http.route": route}
        with self._tracer.start_as_current_span(
            f"{method} {route}", above, kind=SpanKind.SERVER, attributes=about
        ) as span:
            yield lambda status: span.set_attribute("http.response.status_code", status)

    # -- jobs --------------------------------------------------------------------------------------

    def opened(self, job: Job) -> None:
        """A job was taken, in the task of the request that brought it."""
        from opentelemetry import context

        self._jobs[job.id] = _JobTrace(self._job_span(job, context.get_current()))

    def heard(self, job: Job, numbered: NumberedEvent) -> None:
        """An observer of the job board."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        known = self._jobs.get(job.id)
        if known is None:  # of an earlier process
            known = self._jobs[job.id] = _JobTrace(self._job_span(job, None))
        event, at = numbered.event, _nanoseconds(numbered.timestamp)
        if (phase := _phase(event)) is not None and phase != known.phase_name:
            known.end_phase(at)
            below = set_span_in_context(known.span)
            known.phase = self._tracer.start_span(phase, below, start_time=at)
            known.phase_name = phase
        if isinstance(event, Started):
            known.span.set_attribute("easel.attempt", event.attempt)
            known.span.set_attribute("easel.worker", event.worker)
        if isinstance(event, Progressed) and event.step and known.phase is not None:
            known.phase.add_event("step", {"easel.step": event.step}, timestamp=at)
        if isinstance(event, TERMINAL):
            known.end_phase(at)
            known.span.set_attribute("easel.status", job.status)
            if isinstance(event, Failed | Expired):
                known.span.set_status(Status(StatusCode.ERROR, event.code))
            known.span.end(at)
            del self._jobs[job.id]

    def _job_span(self, job: Job, above: Context | None) -> Span:
        request = job.request
        about: dict[str, str | int] = {
            "easel.job": job.id,
            "easel.door": job.door,
            "easel.model": request.model,
            "easel.priority": job.terms.priority,
            "easel.size": f"{request.width}x{request.height}",
            "easel.steps": request.num_inference_steps,
            "easel.n": request.n,
        }
        return self._tracer.start_span(
            "job", above, attributes=about, start_time=_nanoseconds(job.created)
        )


class _JobTrace:
    def __init__(self, span: Span) -> None:
        self.span = span
        self.phase: Span | None = None
        self.phase_name = ""

    def end_phase(self, at: int) -> None:
        if self.phase is not None:
            self.phase.end(at)
        self.phase, self.phase_name = None, ""


def _phase(event: JobEvent) -> str | None:
    if isinstance(event, Queued):
        return "queued"
    return event.phase if isinstance(event, Progressed) else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
