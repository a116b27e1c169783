"""What the demo prints: the table, three examples, and plain words about what the numbers say."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from regrad.cli.demo.questions import Row
from regrad.lab.files import LabQuestion

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
