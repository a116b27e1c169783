"""Things that are chosen by name: one class for every registry, and the nearest right name for a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from regrad.errors import RegradError

V = TypeVar("V")

_NEAR = 0.5


class Registry(dict[str, V]):
    """Entries by name: `registry[name]` raises the registry's own error, which names the nearest entry and all others.

    An entry is given at the start, or added where it is defined: `@MERGES.register("sum")`.
    """

    def __init__(self, noun: str, error: type[RegradError], entries: Mapping[str, V] | None = None) -> None:
        super().__init__(entries or {})
        self._noun, self._error = noun, error

    def register(self, name: str) -> Callable[[V], V]:
        """A decorator that adds what it stands above; raises `ValueError` if the name is taken."""

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
        hint = did_you_mean(name, self) or "."
        raise self._error(
            f"unknown {self._noun} {name!r:.80}{hint} There are {', '.join(self)}", code="unknown_name", name=name
        )


def did_you_mean(name: str, known: Iterable[str], cutoff: float = _NEAR) -> str:
    """Such as "; did you mean 'int8'?", or nothing if no known name is near."""
    near = get_close_matches(name.lower(), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
