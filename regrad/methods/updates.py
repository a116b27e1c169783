"""Where the updates of a batch of questions come from: the one thing in which methods differ beside the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from regrad.corpus import Passage


@dataclass(frozen=True)
class Asked:
    """A question with its passages, best first, and their retrieval scores where there are any."""

    question: str
    passages: tuple[Passage, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Made:
    """The update of each question ([P] float32 on the CPU, or None for the base model), what was fetched, and notes.

    `bytes_fetched` is what the question's atoms take in the bank, wherever they were found. A note is empty if all went
    as the method says.
    """

    updates: list[Tensor | None]
    bytes_fetched: list[int]
    notes: list[str]


class Updates(Protocol):
    """A method bound to a model and its artefacts."""

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """The updates of these questions, in order. May run the model: not beside anything else that does."""


class SameForAll:
    """No update, or one for all questions."""

    def __init__(self, update: Tensor | None = None) -> None:
        self._update = update

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """See `Updates`."""
        return Made([self._update] * len(asked), [0] * len(asked), [""] * len(asked))
