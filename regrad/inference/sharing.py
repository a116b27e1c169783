"""Prompts that begin alike: as far as no update reaches, their keys and values are the base's, and are read once.

The whole model is shared by rows of which none has an update in force, as while the prompts of updates are read that
act on the answer; else the blocks below the first adapted one are, and from there on each row is by itself. Nothing is
kept beyond the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regrad.inference.row_state import Readers
from regrad.inference.rows import Row
from regrad.models.blocks import Blocks
from regrad.models.subspace import by_subspace

# A pass of its own for fewer tokens costs more than reading them in every row.
_LEAST_COMMON = 16


@dataclass(frozen=True)
class SharedReading:
    """Which rows of a pass read the same, where the `whole` model or its lower blocks (None: never) can be shared."""

    blocks: Blocks | None
    whole: bool

    def choose(self, rows: Sequence[Row], most: int) -> list[int]:
        """The first rows with a prompt to read whose pieces, padded to the longest, keep within `most` tokens.

        What several of them read alike, by the whole model, counts once. There is always one, if any has to read.
        """
        chosen: list[int] = []
        apart: list[_Reading] = []
        longest, bare = 0, self.whole
        for number, row in enumerate(rows):
            if not row.is_prefilling:
                continue
            reading = _Reading.of(row, row.next_tokens(most))
            longest = max(longest, reading.tokens)
            bare = bare and not row.in_force
            if bare and not any(one.begins_with(reading) for one in apart):
                apart = [*(one for one in apart if not reading.begins_with(one)), reading]
            if chosen and longest * (len(apart) if bare else len(chosen) + 1) > most:
                break
            chosen.append(number)
        return chosen

    def common_tokens(self, rows: Sequence[Row], most: int) -> int:
        """How many tokens all of these prompts begin with, at most `most`; 0 if that is not worth a pass of its own."""
        if len(rows) < 2 or any(row.read for row in rows):
            return 0
        pieces = [row.next_tokens(most) for row in rows]
        differ = (place for place, tokens in enumerate(zip(*pieces, strict=False)) if len(set(tokens)) > 1)
        common = next(differ, min(map(len, pieces)))
        if not _LEAST_COMMON <= common < max(map(len, pieces)) or not self._shareable(rows):
            return 0
        readers = self.readers(rows, pieces)
        return 0 if readers and len(set(readers.places)) == 1 else common

    def readers(self, rows: Sequence[Row], pieces: Sequence[list[int]]) -> Readers | None:
        """Who reads for whom in a pass of these pieces; None if each row reads for itself.

        A row reads for those whose prompts, to the end of their pieces, are its own or the beginning of its own.
        """
        if len(rows) < 2 or not all(row.is_prefilling for row in rows) or not self._shareable(rows):
            return None
        readings = [_Reading.of(*pair) for pair in zip(rows, pieces, strict=True)]
        places, leading = list(range(len(rows))), list[int]()
        for place in sorted(places, key=lambda place: -readings[place].tokens):
            places[place] = next((one for one in leading if readings[one].begins_with(readings[place])), place)
            if places[place] == place:
                leading.append(place)
        return Readers(places, self._bare(rows)) if len(leading) < len(rows) else None

    def _shareable(self, rows: Sequence[Row]) -> bool:
        """Whether the model, or its lower blocks, are without the updates of any of the rows, which a pass applies."""
        blocks = self.blocks
        if self._bare(rows):
            return True
        if blocks is None or not blocks.lower:
            return False
        return all(blocks.below(subspace) for row in rows for subspace in by_subspace(row.in_force))

    def _bare(self, rows: Sequence[Row]) -> bool:
        return self.whole and not any(row.in_force for row in rows)


@dataclass(frozen=True)
class _Reading:
    """A piece of `tokens` that begins at `start`, and the prompt to its end."""

    start: int
    tokens: int
    prompt: list[int]

    @staticmethod
    def of(row: Row, piece: list[int]) -> _Reading:
        return _Reading(row.read, len(piece), row.prompt[: row.read + len(piece)])

    def begins_with(self, other: _Reading) -> bool:
        return self.start == other.start and self.prompt[: len(other.prompt)] == other.prompt
