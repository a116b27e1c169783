"""Things that are chosen by name: one class for every registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from regrad.errors import RegradError
from regrad.text import did_you_mean, nearest_name

V = TypeVar("V")

_NEAR = 0.5


class Registry(dict[str, V]):
    """Entries by name: `registry[name]` raises the registry's own error, which names the nearest entry and all others.

    An entry is given at the start, or added where it is defined: `@MERGES.register("sum")`.
    """

    def __init__(self, noun: str, error: type[RegradError], entries: Mapping[str, V] | None = None) -> None:
        super().__init__(entries or {})
        self._noun = noun
        self._error = error

    def register(self, name: str) -> Callable[[V], V]:
        """A decorator that adds what it decorates; raises `ValueError` if the name is taken."""

        def add(entry: V) -> V:
            if name in self:
                raise ValueError(f"there is a {self._noun} {name!r} already")
            self[name] = entry
            return entry

        return add

    def check(self, name: str) -> None:
        """Raise the registry's error unless there is such an entry."""
        self[name]

    def __missing__(self, name: str) -> V:
        near = nearest_name(name.lower(), self, _NEAR)
        raise self._error(
            f"unknown {self._noun} {name!r:.80}{did_you_mean(near) or '.'} There are {', '.join(self)}",
            code="unknown_name",
            name=name,
            near=near,
        )
