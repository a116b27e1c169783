"""What the tables say of one method on one set at one k: the mean over questions and seeds, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regrad.evaluation.significance import Comparison

Key = tuple[str, str, str, int]
"""Model, set, method, k."""


@dataclass(frozen=True)
class Entry:
    """Scores are from 0 to 1; the costs are means over the questions, None where they are not known.

    `value` is the chosen metric with its interval, `by_question` the same of each question; `kinds` counts the
    questions of each kind; `noted` is how many records have a note, `against` the comparison with the method that
    others are compared to.
    """

    model: str
    set: str
    method: str
    k: int
    questions: int
    seeds: int
    closed: bool
    value: float
    low: float
    high: float
    em: float
    f1: float
    precision: float
    recall: float
    unparsable: int
    milliseconds: float
    retrieval_ms: float | None
    prompt_tokens: float
    completion_tokens: float
    bytes_fetched: float
    preparation_ms: float | None
    storage_bytes: float | None
    by_question: Mapping[tuple[str, str], float]
    noted: int
    devices: frozenset[str]
    kinds: Mapping[str, int]
    against: Comparison | None = None

    @property
    def key(self) -> Key:
        """Which entry it is."""
        return self.model, self.set, self.method, self.k
