"""The solved questions that a method shows before every question of a set."""

from __future__ import annotations

from collections.abc import Sequence

from regrad.config import EvalSetConfig, MethodConfig
from regrad.config.evaluation import QuestionSetConfig
from regrad.errors import MethodError
from regrad.evaluation.leaks import find_leaks
from regrad.evaluation.matching import counted, listed, refuse
from regrad.evaluation.questions import Question, read_questions

_LEAKS = "demonstrations that are also test questions"


def find_demonstrations(
    method: MethodConfig, one: EvalSetConfig, questions: Sequence[Question]
) -> tuple[Question, ...]:
    """The first of the set's demonstrations, as many as the method asks for, the same for every question.

    Raises `MethodError` if the set has none or fewer, and `EvaluationError` if the file cannot be read or if one that
    would be shown is itself among the questions.
    """
    count = method.demonstrations
    if not count:
        return ()
    wanted = f"method {method.kind} ({method.name}) asks for {counted(count, 'demonstration')}"
    if one.demonstrations is None:
        raise MethodError(f"{wanted}, and set {one.name!r} has none: name a file of solved questions there")
    found = read_questions(
        QuestionSetConfig(
            name=one.name, path=one.demonstrations, format=one.format, kind=one.kind, aliases=one.aliases, first=count
        )
    )
    if len(found) < count:
        raise MethodError(f"{wanted}, and {one.demonstrations} has {len(found)}")
    _refuse_leaks(one, found, questions)
    return tuple(found)


def _refuse_leaks(one: EvalSetConfig, found: Sequence[Question], questions: Sequence[Question]) -> None:
    leaks = [f"{leak.train.id} (question {leak.test.id})" for leak in find_leaks(found, questions, 1.0)]
    label = "demonstration that is also a test question" if len(leaks) == 1 else _LEAKS
    refuse(f"set {one.name!r}: {one.demonstrations}", listed(label, leaks))
