"""Engines that do as they are told, and a host that has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from app.domain.errors import Cancelled, EaselError
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, StepFinished, Waited
from app.domain.model_card import ModelCard
from app.domain.request import Arguments, GenerationRequest
from app.engines.base import ALONE, Report, Sharing
from app.workers.budget import Budget
from app.workers.engine_host import EngineHost
from app.workers.wire import Held


class Stub:
    """An engine that notes what is done with it and goes on when it is let."""

    memory: int = 0

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.name = ""
        self.go_on = threading.Event()
        self.go_on.set()
        self.load_errors: list[Exception] = []
        self.draw_errors: list[EaselError] = []

    def note(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")

    def load(self, card: ModelCard, device: str) -> None:
        self.name = card.id
        self.note("load")
        assert self.go_on.wait(10)
        if self.load_errors:
            raise self.load_errors.pop(0)

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        self.note(f"draw x{sharing.batch}")
        report(PhaseStarted("preparing"))
        report(PhaseStarted("generating", 2))
        while not self.go_on.wait(0.01):
            report(Waited())
        report(StepFinished(1))
        if self.draw_errors:
            raise self.draw_errors.pop(0)
        report(StepFinished(2))
        report(ImageFinished(0, b"", 0, "image/png"))

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        return {}

    def unload(self) -> None:
        self.note("unload")


class Parking(Stub):
    def park(self) -> None:
        self.note("park")

    def unpark(self) -> None:
        self.note("unpark")


class House:
    """A host whose engines are stubs, prepared by `prepare` when they are made."""

    def __init__(self, budget: Budget, kind: type[Stub] = Stub, device: str = "fake") -> None:
        self.log: list[str] = []
        self.held: list[Held] = [Held(())]
        self.engines: dict[str, Stub] = {}
        self.prepare: dict[str, Callable[[Stub], None]] = {}
        self.kind = kind
        self.host = EngineHost(
            device, budget, self.held.append, make=lambda card, _: self.make(card)
        )
        self.threads = ThreadPoolExecutor(8)

    def make(self, card: ModelCard) -> Stub:
        engine = self.kind(self.log)
        if prepare := self.prepare.get(card.id):
            prepare(engine)
        self.engines[card.id] = engine
        return engine

    def run(self, card: ModelCard, cancelled: threading.Event | None = None) -> list[EngineEvent]:
        told: list[EngineEvent] = []

        def report(event: EngineEvent) -> None:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled("enough")
            told.append(event)

        request = card.resolve(Arguments(prompt="x"), draw_seed=lambda: 0)
        self.host.run(card, request, report, Sharing(batch=4))
        return [event for event in told if not isinstance(event, Waited)]

    def start(
        self, card: ModelCard, cancelled: threading.Event | None = None
    ) -> Future[list[EngineEvent]]:
        return self.threads.submit(self.run, card, cancelled)

    def models(self) -> tuple[str, ...]:
        return self.held[-1].models

    def loads(self, name: str) -> int:
        return self.log.count(f"load {name}")

    @contextmanager
    def drawing(self, card: ModelCard) -> Iterator[None]:
        """A run of the model that lasts as long as this."""
        self.host.load(card)
        self.engines[card.id].go_on.clear()
        run = self.start(card)
        until(lambda: any(line == f"draw x4 {card.id}" for line in self.log))
        try:
            yield
        finally:
            self.engines[card.id].go_on.set()
            run.result(10)


@contextmanager
def house(
    budget: Budget | None = None, kind: type[Stub] = Stub, device: str = "fake"
) -> Iterator[House]:
    built = House(budget or Budget(), kind, device)
    try:
        yield built
    finally:
        for engine in built.engines.values():
            engine.go_on.set()
        built.host.close()
        built.threads.shutdown()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def held_back(engine: Stub) -> None:
    engine.go_on.clear()
