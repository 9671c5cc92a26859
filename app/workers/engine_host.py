"""The models that one worker holds: load, draw, make room."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import msgspec

from app.domain.control import PARAM
from app.domain.errors import InvalidRequest, ModelUnavailable
from app.domain.events import EngineEvent, ImageFinished, PhaseStarted, Waited
from app.domain.lora import KEPT_BYTES
from app.domain.memory_plan import NO_LIMIT, Room
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest
from app.engines.base import ALONE, Controllable, Engine, Enlarging, Generate, Report, Sharing
from app.engines.turnstile import Turnstile
from app.engines.weight_bytes import weight_bytes
from app.workers.budget import Budget, memory_of_machine
from app.workers.residency import Residency
from app.workers.resident import Resident
from app.workers.second_try import Retelling, shortage
from app.workers.wire import Held

_log = logging.getLogger(__name__)


def engine_for(
    card: ModelCard,
    turnstile: Turnstile,
    room: Room = NO_LIMIT,
    *,
    lora_room: int = KEPT_BYTES,
    building: threading.Lock | None = None,
) -> Engine:
    """An engine, not yet loaded, for the card's family, with `room` for a model that is alone. Torch is
    imported here and not before."""
    if card.family == "fake":
        from app.engines.fake import FakeEngine

        return FakeEngine(turnstile)
    if card.family == "upscaler":
        from app.engines.upscaler import Upscaler

        return Upscaler(turnstile)
    from app.engines import diffusion_transformer, flux, stable_diffusion
    from app.engines.diffusers_engine import DiffusersEngine

    families = {
        "stable_diffusion": stable_diffusion.RECIPES,
        "flux": flux.RECIPES,
        "diffusion_transformer": diffusion_transformer.RECIPES,
    }
    recipes = families[card.family]
    return DiffusersEngine(recipes, turnstile, room, lora_room=lora_room, building=building)


def _use_all_cores() -> None:
    from app.engines import cores

    cores.use_all()


class EngineHost:
    """Engines on one device, within a budget of bytes. Several threads may run at once.

    What you can rely on, beside what `Residency` promises: a request that ran out of memory is tried
    once more if there are idle models that can leave the device for it; what it has told is not told
    again.
    `changed` is called whenever the models held change, by one thread at a time.
    """

    def __init__(
        self,
        device: str,
        budget: Budget,
        changed: Callable[[Held], None],
        *,
        memory: int = 0,
        make: Callable[[ModelCard, Turnstile], Engine] | None = None,
    ) -> None:
        self._device = device
        room = Room(budget.room_on(device, memory).alone, memory_of_machine())
        # Libraries build models under settings that hold for the whole process: one at a time.
        building = threading.Lock()
        make = make or partial(
            engine_for, room=room, lora_room=budget.lora_memory, building=building
        )
        self._on_cpu = device == "cpu"
        turnstile = self._turnstile = Turnstile(
            overlap=device.startswith("cuda"),
            begin=_use_all_cores if self._on_cpu else lambda: None,
        )
        self._residency = Residency(
            device, budget, memory, lambda card: make(card, turnstile), changed, building
        )

    @property
    def room(self) -> int:
        """Bytes that models may share; 0 is no limit."""
        return self._residency.room.shared

    def adopt_thread(self) -> None:
        """Prepare the calling thread, if it is one that will run nothing but this host's jobs: on a CPU
        all cores are for the thread that does the device's work."""
        if self._on_cpu:
            from app.engines import cores

            cores.use_one()

    def run(
        self,
        card: ModelCard,
        request: GenerationRequest,
        report: Report,
        sharing: Sharing = ALONE,
        upscaler: ModelCard | None = None,
        control: ModelCard | None = None,
    ) -> None:
        """Bring the model if need be and draw, under `control` if there is one; then the same with the
        `upscaler`, for each picture.

        Raises what `Engine.load`, `.generate` and `Controllable.under` raise.
        """
        if upscaler is None:
            self._draw(card, request, report, sharing, control)
            return
        drawn: list[ImageFinished] = []

        def keep(event: EngineEvent) -> None:
            if isinstance(event, ImageFinished):
                drawn.append(event)
            report(Waited() if isinstance(event, ImageFinished) else event)

        small = msgspec.structs.replace(request, output_format="png", upscale=1, upscaler="")
        self._draw(card, small, keep, sharing, control)
        with self._using(upscaler, lambda: report(Waited())) as model:
            engine = model.engine
            if not isinstance(engine, Enlarging):
                raise ModelUnavailable(f"Model {upscaler.id} is no upscaler.")
            for image in drawn:
                engine.enlarge(image, request, report, sharing)

    def _draw(
        self,
        card: ModelCard,
        request: GenerationRequest,
        report: Report,
        sharing: Sharing,
        control: ModelCard | None,
    ) -> None:
        report(PhaseStarted("initializing"))
        report(PhaseStarted("loading_model"))
        with self._using(card, lambda: report(Waited())) as model:
            generate = self._under(model, control) if control else model.engine.generate
            telling = Retelling(report)
            short = shortage(lambda: generate(request, telling, sharing))
            if short is None:
                return
            if not self._residency.clear():
                raise short
            _log.warning("model %s ran out of memory; the idle models left for it", card.id)
            telling.again()
            generate(request, telling, Sharing(sharing.rank, batch=1))

    def _under(self, model: Resident, control: ModelCard) -> Generate:
        engine = model.engine
        if not isinstance(engine, Controllable):
            raise InvalidRequest(f"Model {model.card.id} listens to no control.", param=PARAM)
        if engine.listens_to(control):
            return engine.under(control)
        size = weight_bytes(control, self._device)
        return self._residency.grow(model, size, lambda: engine.under(control))

    def load(self, card: ModelCard) -> None:
        with self._using(card):
            pass

    def profile(self, card: ModelCard) -> Mapping[int, float]:
        """Load the model if need be and measure forwards for pictures of its default size."""
        wish = card.resolve(card.usual("a warm-up"), draw_seed=lambda: 0)
        with self._using(card) as model:
            return model.engine.profile(wish)

    def unload(self, model: str) -> None:
        """Let go of a model for good; one that is in use goes as soon as it is idle."""
        self._residency.dismiss(model)

    def close(self) -> None:
        """Whoever waits for a model is sent away, and the device's thread ends when it has nothing
        left to do."""
        self._residency.close()
        self._turnstile.close()

    @contextmanager
    def _using(
        self, card: ModelCard, check: Callable[[], None] = lambda: None
    ) -> Iterator[Resident]:
        model = self._residency.take(card, check)
        try:
            yield model
        finally:
            self._residency.give_back(model)
