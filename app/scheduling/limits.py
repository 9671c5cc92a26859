"""What the settings say about the queue."""

from __future__ import annotations

import msgspec


class SchedulerLimits(msgspec.Struct, frozen=True):
    """Times are seconds. See config/easel.toml."""

    max_queue: int
    aging_seconds: float
    generation_timeout: float
    stall_seconds: float
    starvation_seconds: float = 60.0
    max_models: int = 0
    owner_weights: dict[str, float] = msgspec.field(default_factory=dict)
