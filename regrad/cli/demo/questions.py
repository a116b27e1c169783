"""The demo's questions, asked through HTTP in every way that is compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regrad.client import AnswerClient
from regrad.data.corpora import read_records
from regrad.evaluation.metrics import exact_match
from regrad.lab.files import LabQuestion


@dataclass(frozen=True)
class Variant:
    """One row of the table: a key of the report and the options of its requests."""

    key: str
    label: str
    options: dict[str, Any]


VARIANTS = (
    Variant("direct", "direct", {"method": "direct"}),
    Variant("rag_k1", "rag, k=1", {"method": "rag", "k": 1}),
    Variant("rag_k3", "rag, k=3", {"method": "rag", "k": 3}),
    Variant("regrad_k1", "regrad, k=1", {"method": "regrad", "k": 1}),
    Variant("regrad_k3", "regrad, k=3", {"method": "regrad", "k": 3}),
    Variant("regrad_icl", "regrad+icl, k=3", {"method": "regrad+icl", "k": 3}),
)
RANDOM = Variant("random", "regrad, another person's gradient", {"method": "regrad"})


@dataclass(frozen=True)
class Row:
    """What was measured for one variant over all questions."""

    variant: Variant
    exact_match: float
    prompt_tokens: float
    questions_per_second: float
    answers: tuple[dict[str, Any], ...]


def read_questions(path: str) -> list[LabQuestion]:
    """The lab's question file."""
    records = [record for _, record in read_records(path)]
    return [LabQuestion(r["question"], tuple(r["answers"]), r["passage_id"], r["other_passage_id"]) for r in records]


def ask_all(client: AnswerClient, variant: Variant, questions: Sequence[LabQuestion], concurrency: int) -> Row:
    """Ask every question in one way. For the control, the passage is another person's, named by its id."""
    requests = [
        {
            "question": q.question,
            **variant.options,
            **({"passage_ids": [q.other_passage_id]} if variant is RANDOM else {}),
        }
        for q in questions
    ]
    started = time.monotonic()
    answers = client.answer_many(requests, concurrency)
    seconds = time.monotonic() - started
    hits = sum(exact_match(a["answer"], q.answers) for a, q in zip(answers, questions, strict=True))
    tokens = sum(a["usage"]["prompt_tokens"] for a in answers)
    n = len(questions)
    return Row(variant, hits / n, tokens / n, n / seconds, tuple(answers))
