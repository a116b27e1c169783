"""The demo's questions, asked in every variant, and the table of what came back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from regrad.client import AnswerClient
from regrad.data.jsonl import read_jsonl
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
    records = [record for _, record in read_jsonl(path)]
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


_EXAMPLES = 3
_EXAMPLE_KEYS = ("direct", "rag_k3", "regrad_k1", "regrad_k3", "regrad_icl")


def show_table(rows: Sequence[Row]) -> None:
    """Exact match and prompt length of every variant."""
    table = Table(title=f"{len(rows[0].answers)} questions about held-out people")
    table.add_column("method")
    for heading in ("exact match", "prompt tokens", "questions/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        speed = f"{row.questions_per_second:.0f}"
        table.add_row(row.variant.label, f"{row.exact_match:.3f}", f"{row.prompt_tokens:.0f}", speed)
    Console().print(table)


def show_examples(rows: Sequence[Row], questions: Sequence[LabQuestion]) -> None:
    """The first questions, one a column, with every method's answer below."""
    by_key, shown = {row.variant.key: row for row in rows}, questions[:_EXAMPLES]
    table = Table(title="Side by side")
    table.add_column("", no_wrap=True)
    for question in shown:
        table.add_column(question.question)
    table.add_row("truth", *(question.answers[0] for question in shown), end_section=True)
    for key in _EXAMPLE_KEYS:
        row = by_key[key]
        table.add_row(row.variant.label, *(str(answer["answer"]) for answer in row.answers[: len(shown)]))
    Console().print(table)


def verdict(em: dict[str, float], weights_unchanged: bool) -> list[str]:
    """What was measured, in words; each sentence depends on the numbers."""
    better = "RAG wins" if em["rag_k3"] > em["regrad_k3"] else "ReGrad is not behind RAG"
    weights = "are bit-identical to those before" if weights_unchanged else "HAVE CHANGED: this is a bug"
    return [
        f"{better} here at k=3 ({em['rag_k3']:.3f} against {em['regrad_k3']:.3f}): reading is easy in this world.",
        "What ReGrad offers beside it: nothing in the prompt. The facts came in as gradients, for one question each,",
        f"and the base weights after all questions {weights}.",
        f"Controls: without anything {em['direct']:.3f}; with another person's gradient {em['random']:.3f}; "
        f"with gradients of an untrained start, best of several step sizes, k=3, {em['raw']:.3f}.",
    ]
