"""How well an index finds the passages that questions need: recall, reciprocal rank, nDCG (trec_eval's), and time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval

from regrad.data.question_files import open_file
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.retrieval.base import Retriever

Qrels = Mapping[str, Mapping[str, int]]
"""For each question's id the passages that are relevant to it, and how much: above 0."""

_BATCH = 64
_BEIR = ("query-id", "corpus-id", "score")
_MOST = 1000
"""A relevance above it is no grade but a mistake, such as columns in another order."""


@dataclass(frozen=True)
class MeasuredSearch:
    """What one index found.

    `scores` are of each question by its id, `run` the (passage id, score) that it got, best first. `alone_ms` are the
    times of searches for one question, `batched_ms` a question's when 64 are asked at once. `unknown` are relevant
    passages that the index does not have.
    """

    scores: Mapping[str, Mapping[str, float]]
    run: Mapping[str, Sequence[tuple[str, float]]]
    alone_ms: Sequence[float]
    batched_ms: float
    unknown: Sequence[str] = ()

    def means(self) -> dict[str, float]:
        """The mean of each measure over all questions."""
        names = next(iter(self.scores.values()))
        return {name: float(np.mean([one[name] for one in self.scores.values()])) for name in names}


def gold_of(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """The passages that questions name as theirs; those of questions that name none are not in it."""
    return {question.id: dict.fromkeys(question.passage_ids, 1) for question in questions if question.passage_ids}


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """A file of relevant passages: TREC's `question 0 passage relevance`, or BEIR's table with its header.

    Any fsspec URI, plain or compressed. Raises `EvaluationError` naming the line, or if the file cannot be read.
    """
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(open_file(path).text.splitlines(), start=1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and tuple(parts[:3]) == _BEIR):
            continue
        fields = parts if len(parts) == 3 else [parts[0], *parts[2:]] if len(parts) == 4 else []
        try:
            question, passage, relevance = fields[0], fields[1], _relevance(fields[2])
        except (IndexError, ValueError) as error:
            raise EvaluationError(
                f"{path} line {number}: 'question 0 passage relevance' (TREC) or 'question, passage, score' with tabs "
                f"(BEIR) is expected, with whole numbers up to {_MOST} as relevance",
                code="bad_qrels",
                uri=path,
                line=number,
            ) from error
        if relevance > 0:
            found.setdefault(question, {})[passage] = relevance
    return found


def _relevance(text: str) -> int:
    """A whole number, as `1` or `1.0`; raises `ValueError`."""
    value = float(text)
    if not (abs(value) <= _MOST and value.is_integer()):
        raise ValueError(text)
    return int(value)


def measure(retriever: Retriever, questions: Sequence[Question], qrels: Qrels, ks: Sequence[int]) -> MeasuredSearch:
    """Search for every question that has relevant passages, in batches, and for some of them alone.

    The first batch is searched for once before the clock starts: an index is slower until it was asked.

    Raises `EvaluationError` if there is none.
    """
    asked = [question for question in questions if qrels.get(question.id)]
    if not asked:
        raise EvaluationError(
            f"none of {len(questions)} questions names a passage that it needs; give the relevant passages with "
            "--qrels",
            code="no_gold",
            questions=len(questions),
        )
    retriever.search_ids([question.query for question in asked[:_BATCH]], max(ks))
    run: dict[str, list[tuple[str, float]]] = {}
    started = time.perf_counter()
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        found = retriever.search_ids([question.query for question in batch], max(ks))
        run.update(zip((question.id for question in batch), found, strict=True))
    batched_ms = 1e3 * (time.perf_counter() - started) / len(asked)
    alone_ms = _alone(retriever, asked, max(ks))
    return MeasuredSearch(scores_of(run, qrels, ks), run, alone_ms, batched_ms, _unknown(retriever, run, qrels))


def scores_of(
    run: Mapping[str, Sequence[tuple[str, float]]], qrels: Qrels, ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """`recall@k`, `ndcg@k` and `mrr` (the reciprocal rank of the first relevant passage) of every question."""
    cuts = ",".join(map(str, ks))
    evaluator = pytrec_eval.RelevanceEvaluator(
        {question: dict(qrels[question]) for question in run}, {f"recall.{cuts}", f"ndcg_cut.{cuts}", "recip_rank"}
    )
    # trec_eval ranks by score, and equal ones by id: the order that the index gave is the one to measure.
    ranked = {
        question: {passage: float(-rank) for rank, (passage, _) in enumerate(found)} for question, found in run.items()
    }
    scores = {}
    for question, found in evaluator.evaluate(ranked).items():
        recalls = {f"recall@{k}": found[f"recall_{k}"] for k in ks}
        gains = {f"ndcg@{k}": found[f"ndcg_cut_{k}"] for k in ks}
        scores[question] = {**recalls, "mrr": found["recip_rank"], **gains}
    return {question: scores[question] for question in run}


def _alone(retriever: Retriever, asked: Sequence[Question], k: int) -> list[float]:
    times = []
    for question in asked[:_BATCH]:
        started = time.perf_counter()
        retriever.search_ids([question.query], k)
        times.append(1e3 * (time.perf_counter() - started))
    return times


def _unknown(retriever: Retriever, run: Mapping[str, object], qrels: Qrels) -> list[str]:
    relevant = list(dict.fromkeys(passage for question in run for passage in qrels[question]))
    known = retriever.known(relevant)
    return [passage for passage in relevant if passage not in known]


def trec_run(measured: MeasuredSearch, tag: str) -> str:
    """What was found as a run file of TREC: `question Q0 passage rank score tag`.

    Raises `EvaluationError` for an id with white space, which such a file cannot have.
    """
    lines = []
    for question, found in measured.run.items():
        for rank, (passage, score) in enumerate(found, start=1):
            if len(question.split()) != 1 or len(passage.split()) != 1:
                raise EvaluationError(
                    f"a run file of TREC has no room for an id with spaces: question {question!r:.80}, passage "
                    f"{passage!r:.80}",
                    code="id_with_spaces",
                    question_id=question,
                    passage_id=passage,
                )
            lines.append(f"{question} Q0 {passage} {rank} {score:.6f} {tag}\n")
    return "".join(lines)
