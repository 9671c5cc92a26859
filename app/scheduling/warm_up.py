"""What a worker does before its first job: load, measure once, and draw one picture.

What you can rely on: a worker that was warmed up holds the models to preload, and the seconds of a
usual picture and of shared forwards are known for each of them; what an earlier life measured is not
measured again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

import msgspec

from app.domain.errors import EaselError
from app.domain.events import ImageFinished, Waited
from app.domain.model_card import ModelCard
from app.domain.progress import ProgressMeter
from app.domain.request import GenerationRequest
from app.scheduling.batch_profile import BatchProfile, profile_of
from app.scheduling.expectations import Expectations, device_kind
from app.workers.base import RunSpec, SlotInfo, WorkerLost, WorkerPool

_log = logging.getLogger(__name__)


class WarmUps:
    """Which slots are warm, and which are being made so. Of the models to `preload`, those are taken
    that `local` gives: a worker does not wait for files that are not here. Jobs wait until `ended`
    is called: what is measured meanwhile must not be disturbed."""

    def __init__(
        self,
        pool: WorkerPool,
        expectations: Expectations,
        preload: Iterable[ModelCard],
        local: Callable[[str], ModelCard | None],
        ended: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._expectations = expectations
        self._preload = [card.id for card in preload]
        self._local = local
        self._ended = ended
        self._begun: set[tuple[str, int]] = set()
        self._warm: set[tuple[str, int]] = set()
        self._going: Counter[str] = Counter()

    def done(self, slot: SlotInfo) -> bool:
        return (slot.id, slot.epoch) in self._warm

    def going(self) -> Collection[str]:
        """Slots that take no job yet."""
        return +self._going

    def takes_jobs(self, slot: SlotInfo) -> bool:
        """Not before its warm-up has begun: a job that came first would hold that up until its own end,
        and the server would not be ready for as long."""
        return (slot.id, slot.epoch) in self._begun and not self._going[slot.id]

    def begin(self, slot: SlotInfo) -> Coroutine[Any, Any, None]:
        """The work of it; from now on the slot takes no job until that is done."""
        self._begun.add((slot.id, slot.epoch))
        self._going[slot.id] += 1
        return self._run(slot)

    async def _run(self, slot: SlotInfo) -> None:
        try:
            cards = [card for name in self._preload if (card := self._local(name)) is not None]
            await warm_up(self._pool, slot, cards, self._expectations)
            self._warm.add((slot.id, slot.epoch))
        except (EaselError, WorkerLost) as error:
            _log.error("worker %s cannot warm up: %s", slot.id, error)
        finally:
            self._going[slot.id] -= 1
            self._ended()


async def warm_up(
    pool: WorkerPool, slot: SlotInfo, cards: Iterable[ModelCard], expectations: Expectations
) -> None:
    """Make the slot ready. Nobody else may run there meanwhile: what is measured is kept.

    Raises WorkerLost, and EaselError when a model cannot be loaded or draw.
    """
    device = device_kind(slot.device)
    for card in cards:
        await pool.call(slot.id, "load", card)
        wish = card.resolve(card.usual("a warm-up"), draw_seed=lambda: 0)
        if expectations.profiles.wants(card.id, device, *card.defaults.size):
            try:
                await measure_batches(pool, slot, card, expectations)
            except EaselError as error:  # then its pictures are drawn one by one
                _log.warning("model %s cannot be profiled: %s", card.id, error)
        if not expectations.times.knows(wish, device):
            first = msgspec.structs.replace(wish, num_inference_steps=1)
            for request in (first, wish):  # the first run of all pays for lazy set-up
                await _rehearse(pool, slot, card, request, expectations)


async def measure_batches(
    pool: WorkerPool, slot: SlotInfo, card: ModelCard, expectations: Expectations
) -> BatchProfile:
    """Measure what shared forwards of the model's default size cost on this slot, and keep it.

    Raises what `WorkerPool.call` raises.
    """
    seconds = await pool.call(slot.id, "profile", card)
    profile = profile_of(card.id, device_kind(slot.device), card.defaults.size, seconds)
    expectations.learn_profile(profile)
    return profile


async def _rehearse(
    pool: WorkerPool,
    slot: SlotInfo,
    card: ModelCard,
    request: GenerationRequest,
    expectations: Expectations,
) -> None:
    meter = ProgressMeter(time.monotonic())
    spec = RunSpec(f"warm-up.{card.id}.{time.monotonic_ns()}", 1, slot.epoch, card, request)
    async for event in pool.run(slot.id, spec):
        if not isinstance(event, ImageFinished | Waited):
            meter.observe(event, time.monotonic())
    meter.finish(time.monotonic())
    if request.num_inference_steps > 1:
        device = device_kind(slot.device)
        expectations.learn(request, device, meter.measured, loaded=True, shared=False)
