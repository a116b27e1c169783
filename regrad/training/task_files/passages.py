"""The passages of each question: gold, retrieved or given, and foreign ones behind them; or why there are none."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from regrad.data.corpora import read_passages
from regrad.data.jsonl import encode_jsonl, parse_jsonl
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.digests import json_digest
from regrad.errors import PassageNotFound, TrainingError
from regrad.retrieval.base import Retriever, open_retriever
from regrad.storage import Storage
from regrad.training.task_files.config import TaskPassagesConfig

NO_GOLD = "names no gold passage"
GOLD_NOWHERE = "a gold passage is nowhere to be found, or is too long"
UNUSABLE = "all its passages are too long or empty"
GOLD_NOT_FOUND = "a gold passage is not among the passages found"
NOTHING_FOUND = "no passage was found"
NOTHING_GIVEN = "comes with no passage"

_POOL = 20_000
"""Passages that random distractors are drawn from: a corpus of any size is read once and not kept."""


@dataclass(frozen=True)
class ChosenPassages:
    """The passages of a question, best first, and whether all of its gold ones are there; or the reason for none."""

    passages: tuple[Passage, ...] = ()
    has_gold: bool = False
    reason: str = ""


class TaskPassages:
    """Chooses the passages of a set's questions. A context manager: it may hold an index open.

    What was retrieved is kept in `parts`, so that a run that was stopped need not search again. With `shared`,
    questions on the same passages have the same random distractors, so that they can share a task.
    """

    def __init__(
        self, config: TaskPassagesConfig, questions: Sequence[Question], seed: int, parts: Storage, shared: bool = False
    ) -> None:
        self._config, self._seed, self._parts, self._shared = config, seed, parts, shared
        self._known = {passage.id: passage for question in questions for passage in question.passages}
        self._most_gold = max((len(question.passage_ids) for question in questions), default=0)
        self._open = ExitStack()
        self._retriever: Retriever | None = None
        pool = list(self._known.values())
        if config.corpus is not None:
            wanted = {name for question in questions for name in question.passage_ids}
            pool = self._read_corpus(config.corpus, wanted)
        self._pool = random.Random(f"{seed}|pool").sample(pool, min(_POOL, len(pool)))

    def __enter__(self) -> Self:
        if self._config.index is not None:
            self._retriever = self._open.enter_context(open_retriever(self._config.index, self._config.retrieval))
        if self._config.distractors and self._config.distractors_from == "random" and not self._pool:
            raise TrainingError(
                "random distractors need passages.corpus: the questions come with no passages to draw from",
                code="no_corpus",
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def gold(self, question: Question) -> list[Passage]:
        """The passages that a question names, those that can be found."""
        own = {passage.id: passage for passage in question.passages}
        found = (own.get(name) or self._known.get(name) or self._indexed(name) for name in question.passage_ids)
        return [passage for passage in found if passage is not None]

    def choose(self, questions: Sequence[Question]) -> list[ChosenPassages]:
        """The passages of each of these questions."""
        hits = self._hits(questions) if self._config.searches else [()] * len(questions)
        return [self._chosen(question, found) for question, found in zip(questions, hits, strict=True)]

    def _chosen(self, question: Question, hits: Sequence[Passage]) -> ChosenPassages:
        gold, names = self.gold(question), set(question.passage_ids)
        needs_gold = self._config.source == "gold" or self._config.gold in ("in", "required")
        if needs_gold and not names:
            return ChosenPassages(reason=NO_GOLD)
        if self._config.source == "gold":
            found = gold
        else:
            found = list({p.id: p for p in (hits if self._config.source == "index" else question.passages)}.values())
        usable = [passage for passage in found if self._usable(passage)]
        if found and not usable:
            return ChosenPassages(reason=UNUSABLE)
        found = usable
        if self._config.gold == "out":
            found = [passage for passage in found if passage.id not in names]
        main = found[: self._config.k]
        if self._config.gold == "in":
            main = _with_gold(main, gold, self._config.k)
        has_gold = bool(names) and len(names & {p.id for p in main}) >= min(self._config.k, len(names))
        if needs_gold and not has_gold:
            return ChosenPassages(reason=GOLD_NOT_FOUND if self._config.gold == "required" else GOLD_NOWHERE)
        if not main:
            return ChosenPassages(reason=NOTHING_GIVEN if self._config.source == "given" else NOTHING_FOUND)
        return ChosenPassages((*main, *self._distractors(question, main, hits)), has_gold)

    def _distractors(self, question: Question, main: Sequence[Passage], hits: Sequence[Passage]) -> Iterable[Passage]:
        taken, wanted = {passage.id for passage in main} | set(question.passage_ids), self._config.distractors
        if self._config.distractors_from == "retrieved":
            return [passage for passage in hits if passage.id not in taken and self._usable(passage)][:wanted]
        # Of so many, enough are foreign, however many of the pool are the question's own.
        of = "|".join(sorted(passage.id for passage in main)) if self._shared else question.id
        drawn = random.Random(f"{self._seed}|draw|{of}").sample(
            self._pool, min(len(self._pool), wanted + len(taken) if wanted else 0)
        )
        return [passage for passage in drawn if passage.id not in taken and self._usable(passage)][:wanted]

    def _usable(self, passage: Passage) -> bool:
        words = len(passage.text.split())
        return 0 < words <= (self._config.max_words or words)

    def _read_corpus(self, uri: str, wanted: set[str]) -> list[Passage]:
        """A random part of the corpus (reservoir sampling); the passages that are named are kept as known."""
        pool: list[Passage] = []
        rng = random.Random(f"{self._seed}|corpus")
        for number, passage in enumerate(read_passages(uri)):
            if passage.id in wanted:
                self._known.setdefault(passage.id, passage)
            if len(pool) < _POOL:
                pool.append(passage)
            elif (place := rng.randrange(number + 1)) < _POOL:
                pool[place] = passage
        return pool

    def _indexed(self, name: str) -> Passage | None:
        try:
            return self._retriever.passages([name])[0] if self._retriever is not None else None
        except PassageNotFound:
            return None

    def _hits(self, questions: Sequence[Question]) -> Iterator[list[Passage]]:
        """What is found for each question: enough for k and the distractors, whatever of it is gold."""
        assert self._retriever is not None
        depth = self._config.k + self._config.distractors + self._most_gold
        depth *= 2 if self._config.max_words else 1  # some of what is found will be passed over
        texts = [question.query for question in questions]
        made_of = [self._retriever.card.model_dump(), self._config.retrieval.model_dump(), depth, texts]
        name = f"{json_digest(made_of, 64, sort_keys=False)}.jsonl"  # the settings in the order of their classes
        if not self._parts.exists(name):
            ranked = self._retriever.search_ids(texts, depth)
            self._parts.write(name, encode_jsonl({"ids": [found for found, _ in one]} for one in ranked))
        for _, record in parse_jsonl(self._parts.read(name), f"{self._parts.uri}/{name}"):
            yield self._retriever.passages(record["ids"])


def _with_gold(found: Sequence[Passage], gold: Sequence[Passage], k: int) -> list[Passage]:
    """The passages found; gold ones that are missing take the place of the worst that are not gold."""
    names, there = {passage.id for passage in gold}, {passage.id for passage in found}
    together = [*found, *(passage for passage in gold if passage.id not in there)]
    foreign = [passage.id for passage in together if passage.id not in names]
    dropped = set(foreign[max(0, len(foreign) - max(0, len(together) - k)) :])
    return [passage for passage in together if passage.id not in dropped][:k]
