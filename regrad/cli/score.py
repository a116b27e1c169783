"""`regrad score` and `regrad leaks`: predictions from a file, and test questions among the training questions."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import click

from regrad.cli.options import printable
from regrad.data.predictions import place_of
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import QUESTION_KINDS, ClosedReader, Question
from regrad.errors import EvaluationError, StorageError
from regrad.evaluation.leaks import find_leaks
from regrad.evaluation.metrics import RULES, Rules
from regrad.settings import parse_settings

if TYPE_CHECKING:
    from regrad.evaluation.scoring import ScoredPart
    from regrad.evaluation.statistics import Column, Comparison

_NAMES = {"em": "EM", "f1": "F1", "precision": "precision", "recall": "recall", "correct": "accuracy"}
_COLUMN = 23
"""The width of the widest value, a difference of -100 points with its interval."""
_NAME_WIDTH = 24
_QUESTION_WIDTH = 200


@click.command("score")
@click.argument("questions")
@click.argument("predictions")
@click.option("--format", "kind_of_file", default="jsonl", show_default=True, help="The format of QUESTIONS.")
@click.option("--kind", type=click.Choice(QUESTION_KINDS), help="The kind of the questions (default: the format's).")
@click.option("--aliases", metavar="FILE", help="2WikiMultihopQA's id_aliases.json.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the file.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="A sample of N of these, as in `regrad eval`.")
@click.option("--seed", default=0, show_default=True, help="The seed of the sample.")
@click.option("--rules", type=click.Choice(RULES), help="Scoring rules for open answers (default: the format's).")
@click.option("--prag-style-cut", is_flag=True, help="Cut open answers as PRAG's evaluation does.")
@click.option(
    "--reader",
    type=click.Choice(get_args(ClosedReader)),
    default="strict",
    show_default=True,
    help="How closed answers are read; release: by the rules of the authors' code.",
)
@click.option("--against", metavar="FILE", help="Other predictions for the same questions, to compare with.")
@click.option("--json", "json_file", metavar="FILE", help="Also write all numbers to this file.")
def score(
    questions: str,
    predictions: str,
    kind_of_file: str,
    rules: Rules | None,
    prag_style_cut: bool,
    reader: ClosedReader,
    against: str | None,
    json_file: str | None,
    **of: Any,
) -> None:
    """Score PREDICTIONS for QUESTIONS: means with 95% intervals, by group where the set has groups.

    PREDICTIONS is lines of {"id": ..., "prediction": ...}, one JSON mapping of ids to predictions, HotpotQA's
    {"answer": {...}}, or the records (.parquet) of a cell of `regrad eval`. Every question needs exactly one.
    """
    from regrad.evaluation.scoring import compare_records, parts, read_scored

    settings = {"name": questions, "path": questions, "format": kind_of_file, **of}
    settings.update(rules=rules, prag_style_cut=prag_style_cut, reader=reader)
    config = parse_settings(QuestionSetConfig, settings, questions)
    if json_file:
        _check_directory(json_file)
    asked = read_questions(config)
    used = config.scoring_rules
    ours = read_scored(predictions, asked, used, prag_style_cut, reader)
    theirs = read_scored(against, asked, used, prag_style_cut, reader) if against else None
    found = parts(ours)
    compared = compare_records(ours, theirs) if theirs else {}
    if json_file:
        about: dict[str, Any] = {"questions": questions, "predictions": predictions, "rules": used}
        about |= {"prag_style_cut": prag_style_cut, "reader": reader, "against": against}
        _write(json_file, about, found, compared)
    click.echo(printable(f"{predictions}: {len(asked):,} questions of {questions}"))
    _show(found)
    if against:
        _show_compared(against, compared)


def _check_directory(json_file: str) -> None:
    """Before anything is computed; and a mistyped directory is not created."""
    storage, _ = place_of(json_file)
    if storage.is_local and not os.path.isdir(storage.root):
        text = f"cannot write {json_file}: there is no directory {storage.root}"
        raise StorageError(text, code="no_directory", uri=json_file)


def _write(
    json_file: str, about: dict[str, Any], found: Sequence[ScoredPart], compared: dict[Column, Comparison]
) -> None:
    numbers = {
        **about,
        "scores": [asdict(part) for part in found],
        "comparisons": {column: asdict(comparison) for column, comparison in compared.items()},
    }
    storage, name = place_of(json_file)
    storage.write(name, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())


def _show(found: Sequence[ScoredPart]) -> None:
    """A table of the open questions, and one of the closed ones, where there are any."""
    from regrad.evaluation.report.tables import interval, percent

    for part in found:
        (first, *_) = part.scores.values()
        unread = "unparsable" if part.closed else "empty"
        if part.group is None:
            _line("closed questions" if part.closed else "open questions", "", [*map(_NAMES.get, part.scores), unread])
        scores = [f"{percent(one.mean)} {interval(*one.interval)}" for one in part.scores.values()]
        name = "all" if part.group is None else part.group or "(no group)"
        _line(name, f"{first.questions:,}", [*scores, f"{first.unparsable:,}"])


def _show_compared(against: str, compared: dict[Any, Comparison]) -> None:
    from regrad.evaluation.report.tables import chance, interval

    click.echo(f"\nagainst {printable(against)}")
    _line("", "", ["difference", "p, t-test", "p, bootstrap"])
    for column, one in compared.items():
        difference = f"{100 * one.difference:+.1f} {interval(*one.interval)}"
        _line(_NAMES[column], f"{one.questions:,}", [difference, chance(one.holm_t), chance(one.holm_bootstrap)])
    corrected = f" after Holm's correction over {len(compared)} metrics" if len(compared) > 1 else ""
    click.echo(f"Points; paired tests over questions; p is two-sided{corrected}.")


def _line(name: str, count: str, values: Sequence[str | None]) -> None:
    cells = "".join(f"{value or '':<{_COLUMN}}  " for value in values)
    click.echo(printable(f"{name[:_NAME_WIDTH]:<{_NAME_WIDTH}} {count:>9}  {cells}").rstrip())


@click.command("leaks")
@click.argument("train")
@click.argument("test")
@click.option(
    "--train-format", default="tasks", show_default=True, help="The format of TRAIN; augmented: of `regrad augment`."
)
@click.option("--test-format", default="jsonl", show_default=True, help="The format of TEST.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.8, show_default=True)
@click.option(
    "--show",
    type=click.IntRange(0),
    metavar="N",
    default=10,
    show_default=True,
    help="Print N of them in full.",
)
def leaks(train: str, test: str, train_format: str, test_format: str, threshold: float, show: int) -> None:
    """Find the questions of TEST that are in TRAIN, exactly or nearly; the exit status is 1 if there are any."""

    def read(path: str, kind: str) -> list[Question]:
        settings = {"name": path, "path": path, "format": kind}
        return read_questions(parse_settings(QuestionSetConfig, settings, path))

    asked = read(test, test_format)
    try:
        known = read(train, train_format)
    except EvaluationError as error:
        if train_format != "tasks" or error.code != "evaluation.bad_task":
            raise
        # A file of questions that is read as one of tasks, as it is by default.
        text = f"{error}; TRAIN is read as tasks of `regrad train`: of questions, say --train-format jsonl"
        raise EvaluationError(text, code="not_tasks", path=train) from error
    leaks = find_leaks(known, asked, threshold)
    exact = sum(leak.how == "exact" for leak in leaks)
    click.echo(f"{len(asked):,} questions: {exact:,} are in {train}, {len(leaks) - exact:,} nearly so")
    for leak in leaks[:show]:
        click.echo(f"{leak.how:<5} {leak.similarity:.2f}  {_question_line(leak.test)}")
        click.echo(f"{'':<10}  {_question_line(leak.train)}")
    raise SystemExit(1 if leaks else 0)


def _question_line(question: Question) -> str:
    return printable(f"{question.id}: {' '.join(question.question.split())}"[:_QUESTION_WIDTH])
