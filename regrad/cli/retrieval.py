"""`regrad eval-retrieval`: what indexes find of the passages that questions need."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import numpy as np

from regrad.cli.options import printable
from regrad.data.predictions import place_of
from regrad.data.question_files import unpacked_name
from regrad.data.question_sets import QuestionSetConfig, read_queries
from regrad.errors import StorageError
from regrad.settings import parse_settings

if TYPE_CHECKING:
    from regrad.evaluation.retrieval import MeasuredSearch

_MOST_K = 1000
_WIDTH = 9


class _Ks(click.ParamType):
    name = "K,K,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Whole numbers from 1 to 1000, each once, in order."""
        try:
            found = tuple(sorted({int(part) for part in str(value).split(",")}))
        except ValueError:
            found = ()
        if not found or found[0] < 1 or found[-1] > _MOST_K:
            self.fail(f"{value!r}: numbers from 1 to {_MOST_K} are expected, such as 1,3,10", param, ctx)
        return found


@click.command("eval-retrieval")
@click.argument("questions")
@click.argument("indexes", nargs=-1, required=True)
@click.option(
    "--format",
    "kind_of_file",
    help="The format of QUESTIONS (default: jsonl; with --qrels, beir for queries.jsonl and topics for .tsv).",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the file.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="A sample of N of these, as in `regrad eval`.")
@click.option("--qrels", metavar="FILE", help="Relevant passages in TREC's or BEIR's format (default: the questions').")
@click.option("--k", "ks", type=_Ks(), default="1,3,10", show_default=True, help="Cut-offs of recall and nDCG.")
@click.option("--json", "json_file", metavar="FILE", help="Also write all numbers, per question, to this file.")
@click.option("--run", "run_file", metavar="FILE", help="With one index: write its results as a TREC run file.")
def eval_retrieval(
    questions: str,
    indexes: tuple[str, ...],
    kind_of_file: str | None,
    limit: int | None,
    sample: int | None,
    qrels: str | None,
    ks: tuple[int, ...],
    json_file: str | None,
    run_file: str | None,
) -> None:
    """Measure how well INDEXES find the passages that QUESTIONS need: recall, nDCG, reciprocal rank, time."""
    if run_file and len(indexes) > 1:
        raise click.UsageError("--run is for one index")
    for file in filter(None, (json_file, run_file)):
        _check_place(file)
    from regrad.evaluation.retrieval import gold_of, measure, read_qrels, trec_run
    from regrad.retrieval.base import open_retriever

    kind = kind_of_file or (_searched(questions) if qrels else "jsonl")
    settings = {"name": questions, "path": questions, "format": kind, "limit": limit, "sample": sample}
    asked = read_queries(parse_settings(QuestionSetConfig, settings, questions))
    relevant = gold_of(asked) if qrels is None else read_qrels(qrels)
    without = sum(not relevant.get(question.id) for question in asked)
    click.echo(
        printable(f"{len(asked) - without:,} questions of {questions}; {without:,} that name no passage left out")
    )
    found: dict[str, MeasuredSearch] = {}
    for index in dict.fromkeys(indexes):
        with open_retriever(index) as retriever:
            found[index] = measure(retriever, asked, relevant, ks)
        if len(found) == 1:
            _line("index", [*found[index].means(), "p50 ms", "p99 ms", "batched"])
        _line(index, _cells(found[index]))
        if missing := found[index].unknown:
            click.echo(printable(f"  {len(missing):,} relevant passages are not in it, such as {missing[0]!r:.80}"))
    if json_file:
        _write(json_file, json.dumps({index: _numbers(one) for index, one in found.items()}, indent=1) + "\n")
    if run_file:
        _write(run_file, trec_run(found[indexes[0]], "regrad"))


def _searched(questions: str) -> str:
    """The format of a file that comes with qrels, by its name as BEIR and TREC publish it."""
    name = unpacked_name(questions)
    return "beir" if name == "queries.jsonl" else "topics" if name.endswith(".tsv") else "jsonl"


def _cells(found: MeasuredSearch) -> list[str]:
    times = [*np.percentile(found.alone_ms, [50, 99]), found.batched_ms]
    return [*(f"{value:.3f}" for value in found.means().values()), *(f"{value:.1f}" for value in times)]


def _numbers(found: MeasuredSearch) -> dict[str, object]:
    p50, p99 = np.percentile(found.alone_ms, [50, 99])
    times = {"p50": float(p50), "p99": float(p99), "batched": found.batched_ms}
    return {"means": found.means(), "milliseconds": times, "unknown": list(found.unknown), "questions": found.scores}


def _line(name: str, values: Sequence[str]) -> None:
    click.echo(printable(f"{name[-40:]:<40} {' '.join(f'{value:>{_WIDTH}}' for value in values)}"))


def _check_place(file: str) -> None:
    storage, _ = place_of(file)
    if storage.is_local and not os.path.isdir(storage.root):  # now, and a mistyped directory is not created
        text = f"cannot write {file}: there is no directory {storage.root}"
        raise StorageError(text, code="no_directory", uri=file)


def _write(file: str, text: str) -> None:
    storage, name = place_of(file)
    storage.write(name, text.encode())
