"""What Prometheus is told: counted from the events of jobs, and read off the scheduler when asked.

Labels hold names of models, phases, doors, routes and codes, all of them ours, and never anything that
a client said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

import app
from app.domain.events import TERMINAL, Expired, Failed, NumberedEvent, Phase, Queued, Started
from app.domain.job import Job
from app.scheduling.onlooker import Onlooker
from app.workers.base import PoolEvent, SlotInfo

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_RATIOS = (0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)

_TICK = 0.1
"""Seconds between two looks at how late the event loop is."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Metrics(Onlooker):
    """One registry of its own. `slots` gives the workers, `by_class` counts jobs by state and class."""

    def __init__(
        self,
        *,
        slots: Callable[[], Iterable[SlotInfo]],
        by_class: Callable[[], Mapping[str, Mapping[str, int]]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(slots, by_class))
        ProcessCollector(namespace="easel", registry=self._registry)
        self._held: dict[str, frozenset[str]] = {}
        self._open: dict[str, _Open] = {}

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"easel_{name}", told, labels, registry=self._registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"easel_{name}", told, labels, buckets=buckets, registry=self._registry
            )

        self._jobs = counter("jobs", "Jobs that have ended.", "model", "door", "status")
        self._errors = counter("job_errors", "Jobs that failed or expired, by code.", "code")
        self._waits = histogram(
            "queue_wait_seconds", "From submission to the first start.", _SECONDS, "priority"
        )
        self._phases = histogram(
            "phase_seconds", "Of jobs that were drawn, by phase.", _SECONDS, "model", "phase"
        )
        self._eta = histogram(
            "eta_error_ratio",
            "How far the first estimate of a job was from what it took, as a part of that.",
            _RATIOS,
            "model",
        )
        self._batches = histogram("batch_size", "Pictures that shared a step.", _BATCHES, "model")
        self._loads = counter("model_loads", "Models that came to a worker.", "device", "model")
        self._unloads = counter("model_unloads", "Models that left one.", "device", "model")
        self._lost = counter("workers_lost", "Workers that died or were given up.", "device")
        self._requests = counter("http_requests", "By answer.", "route", "method", "status")
        self._answers = histogram(
            "http_first_byte_seconds", "Until an answer began.", _SECONDS, "route"
        )
        self._calls = counter("grpc_calls", "By how they ended.", "method", "code")
        self._lag = histogram(
            "event_loop_lag_seconds", "How late the serving process came to its turn.", _QUICK
        )

    def text(self) -> bytes:
        """All of it, in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    # -- jobs --------------------------------------------------------------------------------------

    def heard(self, job: Job, numbered: NumberedEvent) -> None:
        """An observer of the job board."""
        event, model = numbered.event, job.request.model
        known = self._open.get(job.id)
        if isinstance(event, Queued) and known is None and numbered.number == 1:
            self._open[job.id] = _Open(event.eta_seconds)
        elif isinstance(event, Started) and known is not None and not known.started:
            known.started = True
            self._waits.labels(job.terms.priority).observe(numbered.timestamp - job.created)
        elif isinstance(event, TERMINAL):
            self._open.pop(job.id, None)
            self._jobs.labels(model, job.door, job.status).inc()
            if isinstance(event, Failed | Expired):
                self._errors.labels(event.code).inc()
            took = numbered.timestamp - job.created
            if known is not None and job.status == "succeeded" and took > 0:
                self._eta.labels(model).observe(abs(known.eta - took) / took)

    def stepped(self, model: str, batch: int) -> None:
        self._batches.labels(model).observe(batch)

    def drew(self, model: str, seconds: Mapping[Phase, float]) -> None:
        for phase, taken in seconds.items():
            self._phases.labels(model, phase).observe(taken)

    def changed(self, event: PoolEvent, slot: SlotInfo) -> None:
        if event.kind == "lost":
            self._lost.labels(slot.device).inc()
        before, now = self._held.get(slot.id, frozenset()), frozenset(slot.models)
        for model in now - before:
            self._loads.labels(slot.device, model).inc()
        for model in before - now:
            self._unloads.labels(slot.device, model).inc()
        self._held[slot.id] = now

    # -- the serving process -----------------------------------------------------------------------

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """An answer began, `seconds` after its request had come. `route` is a template, not a path."""
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, status).inc()
        self._answers.labels(route).observe(seconds)

    def called(self, method: str, code: str) -> None:
        """A call over gRPC has ended. `method` is one of ours, or "unknown"."""
        self._calls.labels(method, code).inc()

    async def watch_the_loop(self) -> None:
        """Without end."""
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self._lag.observe(max(0.0, time.monotonic() - due))


class _Open:
    """A job that goes on: what was said first of its end, and whether it was started."""

    def __init__(self, eta: float) -> None:
        self.eta = eta
        self.started = False


class _Now(Collector):
    """How it stands at the moment of asking."""

    def __init__(
        self,
        slots: Callable[[], Iterable[SlotInfo]],
        by_class: Callable[[], Mapping[str, Mapping[str, int]]],
    ) -> None:
        self._slots = slots
        self._by_class = by_class

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("easel", "This server.", {"version": app.__version__})
        jobs = GaugeMetricFamily("easel_jobs_now", "Unfinished jobs.", labels=("state", "priority"))
        for state, classes in self._by_class().items():
            for priority, count in classes.items():
                jobs.add_metric((state, priority), count)
        yield jobs
        up = GaugeMetricFamily("easel_worker_up", "Whether it can draw.", labels=("device",))
        held = GaugeMetricFamily(
            "easel_model_resident", "Models that a worker holds.", labels=("device", "model", "in")
        )
        memory = GaugeMetricFamily(
            "easel_device_memory_bytes",
            "Of each device: what there is, what models may take, and what they take.",
            labels=("device", "kind"),
        )
        for slot in self._slots():
            up.add_metric((slot.device,), slot.state == "up")
            for place, models in (("device", slot.models), ("host", slot.parked)):
                for model in models:
                    held.add_metric((slot.device, model, place), 1)
            for kind, count in (("total", slot.memory), ("room", slot.room), ("used", slot.used)):
                memory.add_metric((slot.device, kind), count)
        yield from (up, held, memory)
