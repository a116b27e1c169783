"""The passages of questions, best first: retrieved, given with the question, named by it, or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.config import PassagesConfig
from regrad.retrieval.base import Retriever, open_retriever

_T = TypeVar("_T")


@dataclass(frozen=True)
class FoundPassages:
    """The passages of one question, best first, with scores if they were retrieved."""

    passages: tuple[Passage, ...]
    scores: tuple[float, ...] = ()


class PassageFinder:
    """Passages as the settings say. What is random depends only on the seed and the question's id."""

    def __init__(self, config: PassagesConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def find(self, questions: Sequence[Question], k: int) -> list[FoundPassages]:
        """At most k passages for each question, in order; an index is searched for all of them at once.

        Raises `EvaluationError` or `PassageNotFound` if a passage that a question names does not exist.
        """
        if not k or not questions:
            return [FoundPassages(())] * len(questions)
        if self._config.source == "index":
            hits = self._retriever.search([question.query for question in questions], k)
            found = [FoundPassages(tuple(h.passage for h in one), tuple(h.score for h in one)) for one in hits]
        elif self._config.source == "given":
            found = [FoundPassages(question.passages[:k]) for question in questions]
        elif self._config.source == "gold":
            found = []
            for question in questions:
                gold = self.named(question)[:k]
                found.append(FoundPassages((*gold, *self._distractors(question, k - len(gold), gold))))
        else:
            found = [FoundPassages(tuple(self._drawn(question, k, ()))) for question in questions]
        if not self._config.shuffle:
            return found
        shuffled = []
        for one, question in zip(found, questions, strict=True):
            order = list(range(len(one.passages)))
            self._rng(question, "shuffle").shuffle(order)
            scores = tuple(one.scores[place] for place in order) if one.scores else ()
            shuffled.append(FoundPassages(tuple(one.passages[place] for place in order), scores))
        return shuffled

    @property
    def temperature(self) -> float | None:
        """What the scores of an index were divided by where it was trained, if it was."""
        return self._retriever.temperature if self._config.source == "index" else None

    def _distractors(self, question: Question, count: int, gold: Sequence[Passage]) -> Iterable[Passage]:
        if self._config.distractors is None or count < 1:
            return ()
        if self._config.distractors == "random":
            return self._drawn(question, count, gold)
        known = {passage.id for passage in gold} | set(question.passage_ids)
        hits = self._retriever.search([question.query], count + len(known))[0]
        return [hit.passage for hit in hits if hit.passage.id not in known][:count]

    def _drawn(self, question: Question, count: int, gold: Sequence[Passage]) -> list[Passage]:
        """Distinct passages of the corpus, none of them the question's own; a larger count begins with the same."""
        known = {passage.id for passage in gold} | set(question.passage_ids)
        rng = self._rng(question, "draw")
        size = len(self._everything)
        drawn: dict[int, Passage] = {}
        while len(drawn) < min(count, size - len(known)):
            number = rng.randrange(size)
            if self._everything[number].id not in known:
                drawn.setdefault(number, self._everything[number])
        return list(drawn.values())

    def named(self, question: Question) -> list[Passage]:
        """The passages that the question names; raises `EvaluationError` or `PassageNotFound` if one does not exist."""
        if self._config.corpus is None:
            return self._retriever.passages(question.passage_ids)
        missing = [name for name in question.passage_ids if name not in self._by_id]
        if missing:
            raise EvaluationError(
                f"question {question.id!r} names passage {missing[0]!r}, which is not in the corpus",
                code="passage_not_found",
                question_id=question.id,
                passage_id=missing[0],
            )
        return [self._by_id[name] for name in question.passage_ids]

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
    lacking: list[Question] = []
    if config.source == "given":
        lacking = [question for question in questions if not question.passages]
    elif config.source == "gold":
        lacking = [question for question in questions if not question.passage_ids]
    if lacking:
        what = "come with no passages" if config.source == "given" else "name no passage"
        raise EvaluationError(
            f"set {name!r}: {len(lacking)} of {len(questions)} questions {what} (the first is {lacking[0].id!r}), "
            f"which passages.source={config.source} needs; use another source, such as index",
            code="questions_lack_passages",
            set=name,
            source=config.source,
            questions=len(lacking),
        )
    if config.source == "gold":
        finder = PassageFinder(config, seed=0)
        for question in questions:
            finder.named(question)


def _given(value: _T | None, key: str) -> _T:
    if value is None:
        raise EvaluationError(f"passages.{key} is not set", code="setting_missing", setting=f"passages.{key}")
    return value
