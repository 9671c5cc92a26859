"""What is drawn in the place of a request whose model cannot be loaded."""

from __future__ import annotations

import msgspec

from app.domain.control import PARAM
from app.domain.errors import EaselError, ModelUnavailable, OutOfMemory
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest

Choice = tuple[ModelCard, GenerationRequest]


class Fallback(msgspec.Struct):
    """The choices that are left for a job, and why the model that was asked for does not draw it."""

    choices: list[Choice]
    first_error: EaselError | None = None

    def after(self, error: EaselError, *, loading: bool) -> Choice | EaselError:
        """What to draw after a run has ended with `error`, or what the job fails with: where no model
        could be loaded, with the error of the one that was asked for. `loading` is whether the run
        still waited for its model. No other model helps where the control network is what fails."""
        if not loading or not isinstance(error, ModelUnavailable | OutOfMemory):
            return error
        if error.param == PARAM:
            return error
        self.first_error = self.first_error or error
        return self.choices.pop(0) if self.choices else self.first_error
