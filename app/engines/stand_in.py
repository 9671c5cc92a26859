"""Objects that pass for the parts of a pipeline, and have their work done elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class StandIn:
    """Looks like `part` in every way, `isinstance` included, save for what it is told to do itself.

    `call` takes the place of calling it, `methods` those of its methods.
    """

    def __init__(
        self,
        part: Any,
        call: Callable[..., Any] | None = None,
        methods: Mapping[str, Any] | None = None,
    ) -> None:
        self._part = part
        self._call = call or part
        self.__dict__.update(methods or {})

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        kind: type[Any] = type(self._part)
        return kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)
