"""The models that one worker holds: load, evict, run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from app.domain.errors import ModelUnavailable
from app.domain.events import PhaseStarted
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest
from app.engines.base import Engine, Report


def engine_for(card: ModelCard) -> Engine:
    """An engine, not yet loaded, for the card's family. Torch is imported here and not before."""
    if card.family == "fake":
        from app.engines.fake import FakeEngine

        return FakeEngine()
    from app.engines import flux, stable_diffusion
    from app.engines.diffusers_engine import DiffusersEngine

    if card.family == "stable_diffusion":
        return DiffusersEngine(stable_diffusion)
    if card.family == "flux":
        return DiffusersEngine(flux)
    raise ModelUnavailable(f"No engine draws models of family {card.family}.")


class EngineHost:
    """At most `max_models` loaded engines on one device; the least recently used idle one goes first.

    Several threads may run at once. One model is never loaded twice at a time.
    `changed` is called with the ids held whenever they change.
    """

    def __init__(
        self, device: str, max_models: int, changed: Callable[[tuple[str, ...]], None]
    ) -> None:
        self._device = device
        self._max_models = max_models
        self._changed = changed
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    def run(self, card: ModelCard, request: GenerationRequest, report: Report) -> None:
        """Load the model if need be and draw. Raises what `Engine.load` and `.generate` raise."""
        report(PhaseStarted("initializing"))
        report(PhaseStarted("loading_model"))
        engine = self._take(card)
        try:
            engine.generate(request, report)
        finally:
            with self._lock:
                self._users[card.id] -= 1

    def load(self, card: ModelCard) -> None:
        self._take(card)
        with self._lock:
            self._users[card.id] -= 1

    def unload(self, model: str) -> None:
        """Let go of a model; one that is drawing stays until it is evicted."""
        with self._lock:
            self._drop(model)

    def _take(self, card: ModelCard) -> Engine:
        with self._lock:
            engine = self._engines.get(card.id)
            if engine is None:
                idle = [model for model in self._engines if not self._users[model]]
                while len(self._engines) >= self._max_models and idle:
                    self._drop(idle.pop(0))
                engine = engine_for(card)
                engine.load(card, self._device)
                self._engines[card.id] = engine
                self._users[card.id] = 0
                self._changed(tuple(self._engines))
            self._engines.move_to_end(card.id)
            self._users[card.id] += 1
            return engine

    def _drop(self, model: str) -> None:
        if model in self._engines and not self._users[model]:
            self._engines.pop(model).unload()
            self._changed(tuple(self._engines))
