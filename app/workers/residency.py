"""Which models are on a device, which are on their way, and which go to make room for others."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from app.domain.errors import Cancelled, EaselError, ModelUnavailable, OutOfMemory
from app.domain.memory_plan import Room
from app.domain.model_card import ModelCard
from app.engines.base import Engine
from app.engines.fitting import bytes_needed, plan_for
from app.engines.weight_bytes import weight_bytes
from app.workers.budget import AT_HOME, Budget, memory_of_machine
from app.workers.resident import Failure, Parkable, Resident, fewest, fresh, without
from app.workers.wire import Held

_log = logging.getLogger(__name__)

T = TypeVar("T")
Make = Callable[[ModelCard], Engine]

_LOOK_SECONDS = 0.05
"""How often one who waits looks whether he was called off."""

_PATIENCE = 10.0
"""Seconds. After that one who waits for room has it before others go on using what is in his way."""

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0
"""Seconds for which a model that could not be loaded is not tried again."""


class Residency:
    """Models on one device, within a budget; the one used least recently makes room for the next.

    What you can rely on: a model is never loaded twice at once, and while one is loading the others
    can be used. A model in use never goes. One that can never fit is refused. After a failed load
    nothing of it is left, and for some seconds the same error is the answer.
    """

    def __init__(
        self,
        device: str,
        budget: Budget,
        memory: int,
        make: Make,
        changed: Callable[[Held], None],
        building: threading.Lock | None = None,
    ) -> None:
        self.room = budget.room_on(device, memory)
        self._device = device
        self._budget = budget
        self._make = make
        self._changed = changed
        self._told = Held(())
        self._models: OrderedDict[str, Resident] = OrderedDict()
        self._failures: dict[str, Failure] = {}
        self._short: list[float] = []
        self._closed = False
        self._news = threading.Condition()
        self._building = building or threading.Lock()
        if budget.model_ttl:
            threading.Thread(target=self._send_idle_away, name="idle", daemon=True).start()

    # -- for those who use models ------------------------------------------------------------------

    def take(self, card: ModelCard, check: Callable[[], None]) -> Resident:
        """The model, on the device; `give_back` must follow. `check` is called while it is waited for,
        and its exception ends the wait but not the loading. Raises what `Engine.load` raises."""
        with self._news:
            known = self._models.get(card.id)
        size = known.size if known else self._size_of(card)
        came = time.monotonic()
        model: Resident | None = None
        try:
            while True:
                with self._news:
                    model = model or self._book(card, size, came)
                    if model is not None and model.failure is not None:
                        raise fresh(model.failure)
                    if model is not None and model.state == "here":
                        model.unwanted = False
                        self._models.move_to_end(card.id)
                        return model
                    self._news.wait(_LOOK_SECONDS)
                    if self._closed:
                        raise Cancelled("The worker stops.")
                check()
        except BaseException:
            if model is not None:
                self.give_back(model)
            raise
        finally:
            with self._news:
                self._served(came)

    def give_back(self, model: Resident) -> None:
        with self._news:
            model.users -= 1
            model.idle_since = time.monotonic()
            if model.state == "here":
                model.size = model.engine.memory or model.size  # with LoRAs that came
            going = model.leaves()
            self._tell()
        if going:
            self._send_away([model], for_good=True)

    def dismiss(self, name: str) -> None:
        """Let go of a model for good, now if it is idle, and else when it is."""
        with self._news:
            model = self._models.get(name)
            if model is None:
                return
            model.unwanted = True
            going = model.idle or model.state == "parked"
            if going:
                model.set_out()
        if going:
            self._send_away([model], for_good=True)

    def grow(self, model: Resident, size: int, work: Callable[[], T]) -> T:
        """Do `work`, which loads `size` more bytes for a model in use; idle ones go for them, as far as
        that is needed. Raises OutOfMemory, and what `work` raises."""
        with self._news:
            going = self._victims(model.card, model.size + size) or []
            for one in going:
                one.set_out()
        self._send_away(going)
        with self._building:
            done = work()
        with self._news:
            model.size = model.engine.memory or model.size
            self._tell()
        return done

    def clear(self) -> bool:
        """Have all idle models leave the device, but for the pinned; whether there were any."""
        with self._news:
            idle = [m for m in self._models.values() if m.idle and not self._pinned(m)]
            for model in idle:
                model.set_out()
        self._send_away(idle)
        return bool(idle)

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _size_of(self, card: ModelCard) -> int:
        """Bytes on the device of a model that was never here. Raises OutOfMemory if no plan fits."""
        plan = plan_for(card, self._device, Room(self.room.alone, memory_of_machine()))
        return bytes_needed(plan, weight_bytes(card, self._device))

    # -- who comes, and who goes for it; all with the lock held ------------------------------------

    def _book(self, card: ModelCard, size: int, came: float) -> Resident | None:
        """The model, counted as used and on its way if it is not here; None if there is no room yet."""
        model = self._models.get(card.id)
        if self._yields(came, model):
            return None
        if model is not None and model.card != card:  # the card was changed meanwhile
            if model.idle or model.state == "parked":
                model.set_out()
                threading.Thread(target=self._drop, args=(model,), daemon=True).start()
            return None
        if model is None or model.state == "parked":
            failure = self._failures.get(card.id)
            if failure is not None and time.monotonic() < failure.until:
                raise fresh(failure.error)
            victims = self._victims(card, model.size if model else size)
            if victims is None:
                if came not in self._short:
                    self._short.append(came)
                return None
            if model is None:
                model = self._models[card.id] = Resident(card, size)
            for one in victims:
                one.set_out()
            model.state = "coming"
            self._served(came)
            threading.Thread(
                target=self._bring, args=(model, victims), name=f"load {card.id}", daemon=True
            ).start()
            self._tell()
        elif model.state in ("leaving", "dropping"):
            return None
        model.users += 1
        return model

    def _served(self, came: float) -> None:
        """He waits for room no longer."""
        if came in self._short:
            self._short.remove(came)

    def _yields(self, came: float, model: Resident | None) -> bool:
        """Whether one who came later than another, whom he might keep from getting room, lets him
        have it first."""
        first = min(self._short, default=came)
        waited_enough = time.monotonic() - first > _PATIENCE
        return first < came and waited_enough and not (model and self._pinned(model))

    def _victims(self, card: ModelCard, size: int) -> list[Resident] | None:
        """Those that go so that `size` bytes fit; None if that has to wait. Raises OutOfMemory."""
        others = [
            model for model in self._models.values() if model.on_device and model.card.id != card.id
        ]
        pinned = [model for model in others if self._pinned(model)]
        if not self._fits(pinned, size):
            taken = [model.size for model in pinned]
            raise OutOfMemory(self._budget.refusal(card.id, size, self.room, taken))
        if self._fits(others, size):
            return []
        if any(model.state == "leaving" for model in others):
            return None
        may_go = [model for model in others if model.idle and model not in pinned]
        return fewest(may_go, lambda going: self._fits(without(others, going), size))

    def _fits(self, others: list[Resident], size: int) -> bool:
        if self._budget.max_models and len(others) >= self._budget.max_models:
            return False
        limit = self.room.shared if others else self.room.alone
        return not limit or sum(model.size for model in others) + size <= limit

    def _pinned(self, model: Resident) -> bool:
        return model.card.id in self._budget.pinned

    def _tell(self) -> None:
        self._news.notify_all()
        models = self._models.values()
        held = Held(
            tuple(m.card.id for m in models if m.state == "here"),
            tuple(m.card.id for m in models if m.state == "parked"),
            sum(m.size for m in models if m.on_device),
        )
        if held != self._told:
            self._told = held
            self._changed(held)

    # -- coming, in a thread of its own ------------------------------------------------------------

    def _bring(self, model: Resident, victims: list[Resident]) -> None:
        self._send_away(victims)
        failure = self._attempt(model)
        if isinstance(failure, OutOfMemory) and self.clear():
            gc.collect()
            failure = self._attempt(model)  # others than us may use the device
        if failure is not None:
            if model.copied:
                self._let_go(model)
            gc.collect()  # pipelines hold themselves in circles
        with self._news:
            if failure is None:
                model.state = "here"
                model.size = model.engine.memory or model.size
                model.idle_since = time.monotonic()
                self._failures.pop(model.card.id, None)
            else:
                model.failure = failure
                self._models.pop(model.card.id)
                before = self._failures.get(model.card.id)
                pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
                until = time.monotonic() + pause
                self._failures[model.card.id] = Failure(failure, until, pause)
            going = model.leaves()
            self._tell()
        if going:
            self._send_away([model], for_good=True)

    def _attempt(self, model: Resident) -> EaselError | None:
        """Bring the weights to the device; why that failed, and then nothing is left there."""
        name = model.card.id
        try:
            if model.copied and self._unparked(model):
                return None
            with self._building:
                engine = self._make(model.card)
                engine.load(model.card, self._device)
            model.engine = engine
            return None
        except EaselError as error:
            _log.warning("model %s: %s", name, error.message, exc_info=error.__cause__)
            failure = fresh(error)
        except MemoryError:
            failure = OutOfMemory(f"There is no room for the weights of model {name}.")
        except Exception:  # whatever a library raises
            _log.exception("model %s cannot be loaded", name)
            failure = ModelUnavailable(f"Model {name} cannot be loaded.")
        return failure

    def _unparked(self, model: Resident) -> bool:
        """Whether the model is back; if not, it has to be loaded anew. Raises OutOfMemory."""
        engine = model.engine
        try:
            if isinstance(engine, Parkable):
                engine.unpark()
        except OutOfMemory:
            raise
        except Exception:  # whatever a library raises
            _log.exception("model %s cannot return to the device", model.card.id)
        else:
            return True
        self._let_go(model)
        return False

    # -- leaving; the models are marked so already -------------------------------------------------

    def _send_away(self, models: Iterable[Resident], *, for_good: bool = False) -> None:
        for model in models:
            parked = not for_good and self._park(model)
            if not parked:
                self._let_go(model)
            with self._news:
                if parked:
                    model.state = "parked"
                else:
                    self._models.pop(model.card.id, None)
                self._tell()

    def _drop(self, model: Resident) -> None:
        self._send_away([model], for_good=True)

    def _park(self, model: Resident) -> bool:
        """Leave the weights in host memory, if there is room for them."""
        engine = model.engine
        if self._device in AT_HOME or not isinstance(engine, Parkable):
            return False
        if not model.copied and not self._room_for_copy(model):
            return False
        try:
            engine.park()
        except Exception:  # whatever a library raises
            _log.exception("model %s cannot be kept in host memory", model.card.id)
            return False
        model.copied = True
        return True

    def _room_for_copy(self, model: Resident) -> bool:
        """Whether a copy of the model fits, once those parked longest have gone for it."""
        with self._news:
            copied = [one for one in self._models.values() if one.copied]
            left = self.room.copies - sum(one.size for one in copied)
            going = []
            for one in copied:
                if left < model.size and one.state == "parked":
                    going.append(one)
                    left += one.size
            if left < model.size:
                return False
            for one in going:
                one.set_out()
        self._send_away(going, for_good=True)
        return True

    @staticmethod
    def _let_go(model: Resident) -> None:
        try:
            model.engine.unload()
        except Exception:  # whatever a library raises; the model is gone for us in any case
            _log.exception("model %s did not unload cleanly", model.card.id)
        model.engine = None
        model.copied = False

    def _send_idle_away(self) -> None:
        """Have models go that nobody has used for the time that was set."""
        while True:
            with self._news:
                while not (due := self._due()):
                    if self._closed:
                        return
                    ends = [m.idle_since + self._budget.model_ttl for m in self._lingering()]
                    now = time.monotonic()
                    self._news.wait(max(0.0, min(ends) - now) if ends else None)
                for model in due:
                    model.set_out()
            self._send_away(due, for_good=True)

    def _lingering(self) -> list[Resident]:
        return [
            model
            for model in self._models.values()
            if (model.idle or model.state == "parked") and not self._pinned(model)
        ]

    def _due(self) -> list[Resident]:
        latest = time.monotonic() - self._budget.model_ttl
        return [model for model in self._lingering() if model.idle_since <= latest]
