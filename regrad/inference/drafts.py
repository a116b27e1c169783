"""Drafts of an answer's next tokens: what followed its last tokens before, in the prompt or in the request's passages.

The engine reads a draft in the pass of the last token and keeps what the model chooses anyway, so an answer is the same
in fewer passes. Source: prompt lookup decoding (Saxena, 2023).
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 3  # the longest run of tokens that is looked for
_BORDER = -1  # between texts: no draft goes beyond one, none matches it


class Drafts:
    """The tokens of a request and of its passages, by the runs of up to three of them."""

    def __init__(self, texts: Iterable[Iterable[int]]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for text in texts:
            self.add(_BORDER)
            for token in text:
                self.add(token)

    def add(self, token: int) -> None:
        """Append a token."""
        # A run is known once something follows it, so that the last tokens find where they were before.
        end = len(self._ids)
        for length in range(1, min(_LONGEST, end) + 1):
            self._after[tuple(self._ids[end - length :])] = end
        self._ids.append(token)

    def next(self, most: int) -> list[int]:
        """At most so many tokens that followed the longest run of last tokens that was there before, the last time."""
        for length in range(min(_LONGEST, len(self._ids)), 0, -1):
            run = tuple(self._ids[-length:])
            start = self._after.get(run)
            if start is not None and _BORDER not in run:
                found = self._ids[start : start + most]
                return found[: found.index(_BORDER)] if _BORDER in found else found
        return []
