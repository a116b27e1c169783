"""Prompts that begin alike: below the first adapted block their keys and values are the base's, whatever the updates.

So the lower blocks read what is the same once, for all rows of a pass that read it. From the first adapted block on
each row is by itself. Nothing is kept beyond the pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from regrad.inference.rows import Row
from regrad.models.blocks import Blocks
from regrad.models.subspace import by_subspace

# A pass of its own for fewer tokens costs more than reading them in every row.
_LEAST_COMMON = 16


class SharedReading:
    """Which rows of a pass read the same, where a model's lower blocks can be shared (`blocks`; None: never)."""

    def __init__(self, blocks: Blocks | None) -> None:
        self._blocks = blocks

    def common_tokens(self, rows: Sequence[Row], most: int) -> int:
        """How many tokens all of these prompts begin with, at most `most`; 0 if that is not worth a pass of its own."""
        if len(rows) < 2 or any(row.read for row in rows) or not self._shareable(rows):
            return 0
        pieces = [row.next_tokens(most) for row in rows]
        differ = (place for place, tokens in enumerate(zip(*pieces, strict=False)) if len(set(tokens)) > 1)
        common = next(differ, min(map(len, pieces)))
        return common if _LEAST_COMMON <= common < max(map(len, pieces)) else 0

    def readers(self, rows: Sequence[Row], pieces: Sequence[list[int]]) -> list[int] | None:
        """A number for each row, the same (from 0 on) for those whose prompts are the same to the end of these pieces.

        None if no two of them are.
        """
        if len(rows) < 2 or not all(row.is_prefilling for row in rows) or not self._shareable(rows):
            return None
        known: dict[tuple[int, tuple[int, ...]], int] = {}
        prompts = [tuple(row.prompt[: row.read + len(piece)]) for row, piece in zip(rows, pieces, strict=True)]
        numbers = [known.setdefault((row.read, prompt), len(known)) for row, prompt in zip(rows, prompts, strict=True)]
        return numbers if len(known) < len(rows) else None

    def _shareable(self, rows: Sequence[Row]) -> bool:
        """Whether there are lower blocks and none of the rows' updates, which a pass applies together, reaches them."""
        blocks = self._blocks
        if blocks is None or not blocks.lower:
            return False
        return all(blocks.below(subspace) for row in rows for subspace in by_subspace(row.request.updates))
