"""The passages of a question, best first: retrieved, given with it, those that it names, or any."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.config import PassagesConfig, PassageSource
from regrad.retrieval.base import Retriever, open_retriever

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """The passages of one question, best first; scores where there are any."""

    passages: tuple[Passage, ...]
    scores: tuple[float, ...] = ()


class PassageFinder:
    """Passages as the settings say. What is random depends on the seed and the question's id alone."""

    def __init__(self, config: PassagesConfig, seed: int) -> None:
        self._config, self._seed = config, seed

    def find(self, question: Question, k: int) -> Found:
        """At most k passages; raises `EvaluationError` if a passage that the question names is nowhere."""
        finders: dict[str, Callable[[Question, int], Found]] = {
            "index": self._retrieved,
            "given": lambda asked, most: Found(asked.passages[:most]),
            "gold": self._gold,
            "random": lambda asked, most: Found(tuple(self._drawn(asked, most, ()))),
        }
        found = finders[self._config.source](question, k)
        return self._shuffled(found, question) if self._config.shuffle else found

    def _retrieved(self, question: Question, k: int) -> Found:
        hits = self._retriever.search([question.question], k)[0]
        return Found(tuple(hit.passage for hit in hits), tuple(hit.score for hit in hits))

    def _gold(self, question: Question, k: int) -> Found:
        gold = self.named(question)[:k]
        return Found((*gold, *self._distractors(question, k - len(gold), gold)))

    def _distractors(self, question: Question, count: int, gold: Sequence[Passage]) -> Iterable[Passage]:
        if self._config.fill is None or count < 1:
            return ()
        if self._config.fill == "random":
            return self._drawn(question, count, gold)
        known = {passage.id for passage in gold} | set(question.passage_ids)
        hits = self._retriever.search([question.question], count + len(known))[0]
        return [hit.passage for hit in hits if hit.passage.id not in known][:count]

    def _drawn(self, question: Question, count: int, gold: Sequence[Passage]) -> list[Passage]:
        """Distinct passages of the corpus, none of them the question's own. The first ones are the same for every k."""
        known = {passage.id for passage in gold} | set(question.passage_ids)
        rng, size = self._rng(question, "draw"), len(self._everything)
        drawn: dict[int, Passage] = {}
        while len(drawn) < min(count, size - len(known)):
            number = rng.randrange(size)
            if self._everything[number].id not in known:
                drawn.setdefault(number, self._everything[number])
        return list(drawn.values())

    def named(self, question: Question) -> list[Passage]:
        """The passages that the question names; raises `EvaluationError` or `PassageNotFound` if one is nowhere."""
        if self._config.corpus is None:
            return self._retriever.passages(question.passage_ids)
        missing = [name for name in question.passage_ids if name not in self._by_id]
        if missing:
            raise EvaluationError(f"question {question.id!r} names passage {missing[0]!r}, which the corpus has not")
        return [self._by_id[name] for name in question.passage_ids]

    def _shuffled(self, found: Found, question: Question) -> Found:
        order = list(range(len(found.passages)))
        self._rng(question, "shuffle").shuffle(order)
        scores = tuple(found.scores[number] for number in order) if found.scores else ()
        return Found(tuple(found.passages[number] for number in order), scores)

    def _rng(self, question: Question, purpose: str) -> random.Random:
        return random.Random(f"{self._seed}|{purpose}|{question.id}")

    @cached_property
    def _retriever(self) -> Retriever:
        return open_retriever(_given(self._config.index, "index"), self._config.retrieval)

    @cached_property
    def _everything(self) -> list[Passage]:
        return list(read_passages(_given(self._config.corpus, "corpus")))

    @cached_property
    def _by_id(self) -> dict[str, Passage]:
        return {passage.id: passage for passage in self._everything}


def check_passages(name: str, config: PassagesConfig, questions: Sequence[Question]) -> None:
    """Raise `EvaluationError` or `PassageNotFound` if the questions, or the corpus, lack what `config.source` needs."""
    lacking = [question for question in questions if _lacks(config.source, question)]
    if lacking:
        what = "come with no passages" if config.source == "given" else "name no passage"
        raise EvaluationError(
            f"set {name!r}: {len(lacking)} of {len(questions)} questions {what} (the first is {lacking[0].id!r}), "
            f"which passages.source={config.source} needs; use another source, such as index"
        )
    if config.source == "gold":
        finder = PassageFinder(config, seed=0)
        for question in questions:
            finder.named(question)


def most_passages(config: PassagesConfig, questions: Sequence[Question], k: int) -> int:
    """How many passages a question gets at most: fewer than k where only its own count."""
    if config.source == "given":
        return min(k, max((len(question.passages) for question in questions), default=0))
    if config.source == "gold" and config.fill is None:
        return min(k, max((len(question.passage_ids) for question in questions), default=0))
    return k


def _lacks(source: PassageSource, question: Question) -> bool:
    return (source == "given" and not question.passages) or (source == "gold" and not question.passage_ids)


def _given(value: T | None, key: str) -> T:
    if value is None:
        raise EvaluationError(f"passages.{key} is not set")
    return value
