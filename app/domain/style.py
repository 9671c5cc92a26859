"""Styles: words that are put around a prompt, where a request asks for them and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from app.domain.errors import InvalidRequest
from app.domain.request import Arguments

MOST = 8
"""Styles that one request may ask for."""

Words = Field(default="", max_length=1000)


class Style(BaseModel):
    """What is drawn is prefix, prompt, suffix; `negative` goes behind the negative prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    aliases: tuple[str, ...] = ()
    prefix: str = Words
    suffix: str = Words
    negative: str = Words

    def around(self, prompt: str) -> str:
        led = f"{self.prefix} {prompt}" if self.prefix else prompt
        return _listed(led, self.suffix)


class Styles(Mapping[str, Style]):
    """The styles that there are, by their ids. Raises ValueError for two of one name."""

    def __init__(self, styles: Mapping[str, Style] | None = None) -> None:
        self._styles = dict(styles or {})
        self._ids: dict[str, str] = {}
        for name, style in self._styles.items():
            for alias in (name, *style.aliases):
                if _spelled(alias) in self._ids:
                    raise ValueError(f"two styles are called {alias}")
                self._ids[_spelled(alias)] = name

    def __getitem__(self, id: str) -> Style:
        return self._styles[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._styles)

    def __len__(self) -> int:
        return len(self._styles)

    def onto(self, given: Arguments, usual_negative: str) -> Arguments:
        """The arguments with the styles that they ask for in their prompts, the first one innermost.

        `usual_negative` is what an absent negative prompt means. Without a prompt there is nothing to
        put words around, so that is left as it is.

        Raises:
            InvalidRequest: a style is not known, or they are too many.
        """
        ids = list(dict.fromkeys(self._find(name) for name in given.styles))
        if len(ids) > MOST:
            raise InvalidRequest(f"At most {MOST} styles can be asked for.", param="style")
        if not ids or not given.prompt.strip():
            return replace(given, styles=())
        prompt, negative = given.prompt, given.negative_prompt
        negative = usual_negative if negative is None else negative
        for style in (self._styles[one] for one in ids):
            prompt = style.around(prompt)
            negative = _listed(negative, style.negative)
        return replace(given, prompt=prompt, negative_prompt=negative, styles=(), styled=tuple(ids))

    def knows(self, name: str) -> bool:
        """Whether it is the id or another name of a style."""
        return _spelled(name) in self._ids

    def _find(self, name: str) -> str:
        if (found := self._ids.get(_spelled(name))) is None:
            known = ", ".join(self._styles)
            raise InvalidRequest(f"This style is not known. Styles: {known}.", param="style")
        return found


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _spelled(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")
