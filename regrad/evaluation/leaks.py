"""Test questions that are in the training data: the same after normalisation, or nearly the same.

Two questions are near if their sets of character 5-grams have a Jaccard similarity of at least a threshold. All such
pairs are found: if two sets are that similar, the parts of them with the rarest grams, of a size that the threshold
determines, share a gram (prefix filtering; Chaudhuri, Ganti and Kaushik 2006), and only sets that do are compared. For
tens of thousands of questions this is faster than hashing them (MinHash), which would miss some.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from regrad.data.questions import Question

_GRAM = 5


@dataclass(frozen=True)
class Leak:
    """A test question and the training question that is most like it (similarity 1: the same)."""

    test: Question
    train: Question
    how: Literal["exact", "near"]
    similarity: float


def find_leaks(train: Iterable[Question], test: Iterable[Question], threshold: float = 0.8) -> list[Leak]:
    """One leak for each test question that has any, in the order of the test set.

    Questions are compared with their options, without passages and answers.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold is above 0 and at most 1, found {threshold}")
    seen: dict[str, Question] = {}
    for question in train:
        seen.setdefault(question.normalised, question)
    near = NearTexts(list(seen), threshold)
    leaks = []
    for question in test:
        text = question.normalised
        if text in seen:
            leaks.append(Leak(question, seen[text], "exact", 1.0))
        elif best := max(near.to(text), default=None):
            leaks.append(Leak(question, seen[best[1]], "near", best[0]))
    return leaks


class NearTexts:
    """Finds which of some texts are near to another text, at one threshold."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self._texts = texts
        self._threshold = threshold
        self._counts = Counter(gram for text in texts for gram in _grams(text))
        self._holders: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            for gram in self._rarest(_grams(text)):
                self._holders[gram].append(number)

    def to(self, text: str) -> Iterator[tuple[float, str]]:
        """(similarity, text) of the texts at or above the threshold."""
        for number in {number for gram in self._rarest(_grams(text)) for number in self._holders.get(gram, ())}:
            if (likeness := similarity(text, self._texts[number])) >= self._threshold:
                yield likeness, self._texts[number]

    def _rarest(self, grams: set[str]) -> list[str]:
        """The part of a set of grams that shares a gram with the same part of every near one."""
        shared_at_least = math.ceil(self._threshold * len(grams) - 1e-9)
        ordered = sorted(grams, key=lambda gram: (self._counts[gram], gram))
        return ordered[: len(grams) - shared_at_least + 1]


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts' sets of character 5-grams, from 0 to 1."""
    grams, others = _grams(one), _grams(other)
    return len(grams & others) / len(grams | others)


def _grams(text: str) -> set[str]:
    return {text[start : start + _GRAM] for start in range(max(1, len(text) - _GRAM + 1))}
