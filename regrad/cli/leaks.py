"""`regrad leaks`."""

from __future__ import annotations

import click

from regrad.cli.text import printable
from regrad.data.config import QuestionSetConfig
from regrad.data.question_sets import read_questions
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.leaks import find_leaks
from regrad.settings import parse_settings

_WIDTH = 200


@click.command("leaks")
@click.argument("train")
@click.argument("test")
@click.option(
    "--train-format", default="tasks", show_default=True, help="The format of TRAIN; augmented: of `regrad augment`."
)
@click.option("--test-format", default="jsonl", show_default=True, help="The format of TEST.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.8, show_default=True)
@click.option("--show", type=click.IntRange(0), default=10, show_default=True, help="So many leaks in full.")
def command(train: str, test: str, train_format: str, test_format: str, threshold: float, show: int) -> None:
    """Find the questions of TEST that are in TRAIN, word for word or nearly; the exit status is 1 if there are any."""

    def read(path: str, kind: str) -> list[Question]:
        settings = {"name": path, "path": path, "format": kind}
        return read_questions(parse_settings(QuestionSetConfig, settings, path))

    asked = read(test, test_format)
    try:
        known = read(train, train_format)
    except EvaluationError as error:
        raise _hinted(error, train_format) from error
    leaks = find_leaks(known, asked, threshold)
    exact = sum(leak.how == "exact" for leak in leaks)
    click.echo(f"{len(asked):,} questions: {exact:,} are in {train}, {len(leaks) - exact:,} nearly so")
    for leak in leaks[:show]:
        click.echo(f"{leak.how:<5} {leak.similarity:.2f}  {_line(leak.test)}")
        click.echo(f"{'':<10}  {_line(leak.train)}")
    raise SystemExit(1 if leaks else 0)


def _hinted(error: EvaluationError, train_format: str) -> EvaluationError:
    """With the way out for a file of questions that is read as one of tasks, as it is by default."""
    if train_format != "tasks" or "field 'questions' is missing" not in str(error):
        return error
    return EvaluationError(f"{error}; TRAIN is read as tasks of `regrad train`: of questions, say --train-format jsonl")


def _line(question: Question) -> str:
    return printable(f"{question.id}: {' '.join(question.question.split())}"[:_WIDTH])
