"""Tokens to text, piece by piece: what a stream has given out is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_WINDOW, _MOST = 8, 32  # tokens that are decoded again: from so many up to so many
_BROKEN = "\ufffd"


class TextStream:
    """The text of an answer as its tokens come.

    Leading white space is dropped, the answer ends before the first stop string, and trailing white space is not
    given out until something follows it: so the pieces, one after the other, are the final text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._start = self._read = 0
        self._before = ""  # the text of the tokens from start to read
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one more token; returns the text that is certain now and was not given out before."""
        self._ids.append(token)
        self._text = (self._text + self._new_text()).lstrip() if not self._given else self._text + self._new_text()
        self._cut()
        return self._give(len(self._text) if self.stopped else len(self._text) - self._uncertain())

    def finish(self) -> str:
        """The rest of the text."""
        if not self.stopped:
            whole = self._text + self._tail()
            self._text = whole if self._given else whole.lstrip()
            self._cut()
        return self._give(len(self._text))

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text[: self._given]

    def _new_text(self) -> str:
        """What the last tokens add, once they are whole characters: the tokenizer sees a few tokens before them."""
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(self._before) or now.endswith(_BROKEN):
            return ""
        new, self._before, self._read = now[len(self._before) :], now, len(self._ids)
        if self._read - self._start > _MOST:
            self._start = self._read - _WINDOW
            self._before = self._decode(self._ids[self._start :])
        return new

    def _tail(self) -> str:
        return self._decode(self._ids[self._start :])[len(self._before) :] if self._read < len(self._ids) else ""

    def _cut(self) -> None:
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _uncertain(self) -> int:
        """How much of the end may yet be cut off: the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0

    def _give(self, upto: int) -> str:
        upto = max(self._given, len(self._text[:upto].rstrip()))
        piece, self._given = self._text[self._given : upto], upto
        return piece
