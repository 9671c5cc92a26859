"""What can be asked for: models, control networks, upscalers, styles, and the names that they go by."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping

from app.domain.control import Controls
from app.domain.errors import InvalidRequest, UnknownModel
from app.domain.model_card import ModelCard
from app.domain.style import Styles
from app.domain.upscaling import Upscalers


class Catalogue:
    """A snapshot: who has it is not disturbed by another that takes its place.

    `all` are the cards of everything that has weights. Raises ValueError for names that mean nothing,
    or two things.
    """

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        *,
        default_model: str,
        foreign_models: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
        mentioned: Iterable[str] = (),
        styles: Styles,
        upscalers: Upscalers,
        controls: Controls,
    ) -> None:
        aliases = aliases or {}
        for name in (default_model, *mentioned, *aliases.values()):
            if name not in cards:
                raise ValueError(f"the settings name model {name}, which has no card")
        if both := cards.keys() & upscalers.keys():
            raise ValueError(f"model {min(both)} has the name of an upscaler")
        if both := controls.keys() & {*cards, *upscalers}:
            raise ValueError(f"control network {min(both)} has the name of a model")
        self.cards = cards
        self.styles = styles
        self.upscalers = upscalers
        self.controls = controls
        self.all = {
            **cards,
            **{name: one.card for name, one in upscalers.items()},
            **{name: one.files for name, one in controls.items()},
        }
        self._default = cards[default_model]
        self._foreign = foreign_models
        self._names = {name: card for card in cards.values() for name in (card.id, *card.aliases)}
        self._names |= {alias: self._names[name] for alias, name in aliases.items()}

    def knows(self, name: str) -> bool:
        """Whether a model goes by the name."""
        return name in self._names

    def model(
        self, name: str | None, family: str | None = None, *, here: Callable[[str], bool]
    ) -> ModelCard:
        """The card that a client means by `name`: an id, an alias, or nothing at all.

        Names of OpenAI's own models, and an absent one, mean the default model; where a front door
        serves one `family` only, its default is the first card of that family whose files are `here`.

        Raises:
            UnknownModel: no card answers to the name.
            InvalidRequest: the model is of another family.
        """
        if not name or any(fnmatch.fnmatchcase(name, foreign) for foreign in self._foreign):
            if family is None or self._default.family == family:
                return self._default
            kin = [card for card in self.cards.values() if card.family == family]
            card = next(iter([card for card in kin if here(card.id)] or kin), None)
        else:
            card = self._names.get(name)
        if card is None:
            known = ", ".join(self.cards)
            raise UnknownModel(f"This model does not exist here. Models: {known}.", param="model")
        if family is not None and card.family != family:
            raise InvalidRequest(
                f"Model {card.id} is of family {card.family}, and this route draws {family} only.",
                param="model",
            )
        return card
