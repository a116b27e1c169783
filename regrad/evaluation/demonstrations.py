"""The demonstrations of each question of a set: chosen, checked and hashed before a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial

from regrad.data.question_sets import read_demonstrations
from regrad.data.questions import Question
from regrad.digests import json_digest
from regrad.errors import EvaluationError, MethodError
from regrad.evaluation.config import EvalSetConfig
from regrad.evaluation.leaks import find_leaks
from regrad.methods.base import MethodSettings
from regrad.methods.demonstrations import DemonstrationPool
from regrad.text import counted, listed


@dataclass(frozen=True)
class ChosenDemonstrations:
    """The demonstrations `of` each question by its id, for one method on one set; empty for a method without any.

    `digest` is of all that the method uses of them; `seconds` is the time of searching for those of all questions.
    """

    digest: str
    of: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    seconds: float = 0.0


def choose_demonstrations(
    methods: Sequence[MethodSettings], one: EvalSetConfig, questions: Sequence[Question]
) -> dict[str, ChosenDemonstrations]:
    """Those of each method, by its name.

    Raises `MethodError` if the set has none or too few, or a method can make nothing of them, and `EvaluationError` if
    the file cannot be read or if one of the first, which every question gets, is also one of the questions.
    """
    read = cache(partial(read_demonstrations, one))
    pools = {method.name: _pool(method, one, read) for method in methods}  # all, before a file is indexed
    chosen = {
        method.name: _first(method, one, pools[method.name], questions)
        for method in methods
        if not method.searches_demonstrations
    }
    if searching := [method for method in methods if method.searches_demonstrations]:
        with DemonstrationPool(pools[searching[0].name], searched=True) as pool:
            # What is slow only the first time is not part of the times.
            pool.nearest(questions[:1], searching[0].demonstrations)
            chosen |= {method.name: _nearest(method, pool, questions) for method in searching}
    for method in methods:
        for shown in dict.fromkeys(chosen[method.name].of.values()):
            method.check_demonstrations(shown)
    return chosen


def _pool(
    method: MethodSettings, one: EvalSetConfig, read: Callable[[str, int | None], list[Question]]
) -> list[Question]:
    """The solved questions that the method chooses from; raises `MethodError` if there are fewer than it asks for."""
    count = method.demonstrations
    if not count:
        return []
    most = None if method.searches_demonstrations else count
    found = read(one.demonstrations, most) if one.demonstrations else []
    if len(found) < count:
        lack = f"{one.demonstrations} has {len(found)}" if one.demonstrations else f"set {one.name!r} has none"
        raise MethodError(
            f"method {method.kind} ({method.name}) asks for {counted(count, 'demonstration')}, but {lack}; name a file "
            "of enough solved questions as the set's `demonstrations`",
            code="too_few_demonstrations",
            set=one.name,
            expected=count,
            found=len(found),
        )
    return found


def _first(
    method: MethodSettings, one: EvalSetConfig, found: Sequence[Question], questions: Sequence[Question]
) -> ChosenDemonstrations:
    leaks = {leak.train.id: leak.test.id for leak in find_leaks(found, questions, 1.0)}
    if leaks:
        shown = listed([f"{train!r} (question {test})" for train, test in leaks.items()], 5)
        raise EvaluationError(
            f"set {one.name!r}: {counted(len(leaks), 'demonstration')} of {one.demonstrations} also asked in the test: "
            f"{shown}; take them out of one of the two files",
            code="demonstrations_in_test",
            demonstrations=leaks,
        )
    # As it was before any were searched for: it is in the keys of all cells.
    digest = demonstrations_digest(found, method.READS_DEMONSTRATIONS)
    return ChosenDemonstrations(digest, dict.fromkeys((one.id for one in questions), tuple(found)) if found else {})


def _nearest(method: MethodSettings, pool: DemonstrationPool, questions: Sequence[Question]) -> ChosenDemonstrations:
    started = time.perf_counter()
    nearest = pool.nearest(questions, method.demonstrations)
    seconds = time.perf_counter() - started
    of = dict(zip((question.id for question in questions), nearest, strict=True))
    return ChosenDemonstrations(nearest_digest(of, method.READS_DEMONSTRATIONS), of, seconds)


def demonstrations_digest(demonstrations: Sequence[Question], passages: bool = False) -> str:
    """The digest of everything that prompts show of them, in order; with `passages` also of their passages."""
    shown = [[one.kind, one.question, one.choices, one.answers[0]] for one in demonstrations]
    read = [[asdict(passage) for passage in one.passages] for one in demonstrations] if passages else []
    return json_digest([*shown, *read], ensure_ascii=False)


def nearest_digest(of: Mapping[str, Sequence[Question]], passages: bool = False) -> str:
    """The digest of what each question gets, by the questions' ids in their order."""
    return json_digest([[name, demonstrations_digest(one, passages)] for name, one in of.items()], ensure_ascii=False)
