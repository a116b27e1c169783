"""All cells of a run, each with a key: the hash of everything that decides its result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from regrad.data.id_checks import problem, refuse
from regrad.data.passages import Passage
from regrad.data.question_sets import read_demonstrations, read_questions
from regrad.data.questions import Question
from regrad.errors import EvaluationError, MethodError
from regrad.evaluation import cache_keys
from regrad.evaluation.config import EvalConfig, EvalSetConfig
from regrad.evaluation.leaks import find_leaks
from regrad.evaluation.passages import PassageFinder, check_passages, most_passages
from regrad.methods.base import MethodSettings
from regrad.models.config import ModelConfig
from regrad.text import counted

_LEAKS = "demonstrations that are also test questions"


def find_demonstrations(
    method: MethodSettings, one: EvalSetConfig, questions: Sequence[Question]
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
    found = read_demonstrations(one, one.demonstrations, count)
    if len(found) < count:
        raise MethodError(f"{wanted}, and {one.demonstrations} has {len(found)}")
    _refuse_leaks(one, found, questions)
    return tuple(found)


def _refuse_leaks(one: EvalSetConfig, found: Sequence[Question], questions: Sequence[Question]) -> None:
    leaks = [f"{leak.train.id} (question {leak.test.id})" for leak in find_leaks(found, questions, 1.0)]
    label = "demonstration that is also a test question" if len(leaks) == 1 else _LEAKS
    refuse(f"set {one.name!r}: {one.demonstrations}", problem(label, leaks))


_QUESTIONS = 64


class Coverage:
    """Looks up the passages of each set's first questions in the banks; finds those of a set only once."""

    def __init__(self, questions: Mapping[str, Sequence[Question]], k: int) -> None:
        self._questions, self._k = questions, k
        self._found: dict[str, list[Passage]] = {}
        self._checked: set[tuple[str, str | None, int | None]] = set()

    def check(self, method: MethodSettings, one: EvalSetConfig, seed: int) -> None:
        """Raise `MethodError` if the method's bank has the atom of none of them; nothing for a method without one."""
        artefacts = method.artefacts
        place = (one.name, artefacts.bank, artefacts.bank_version)
        if place in self._checked or not method.leaves_out:
            return
        if one.name not in self._found:
            self._found[one.name] = self._first(one, seed)
        method.check_covers(self._found[one.name])
        self._checked.add(place)

    def _first(self, one: EvalSetConfig, seed: int) -> list[Passage]:
        finder = PassageFinder(one.passages, seed)
        first = self._questions[one.name][:_QUESTIONS]
        return [passage for question in first for passage in finder.find(question, self._k).passages]


_RESULTS = 2  # raise it when the same settings come to give other records
_READING = 2  # raise it when answers of closed questions come to be read in another way
_UNSAFE = re.compile(r"[^A-Za-z0-9.+_-]+")


@dataclass(frozen=True)
class PlannedCell:
    """One method on one set with one model, k and seed. `k` is 0 for a method that retrieves nothing."""

    set: EvalSetConfig
    method: MethodSettings
    model_name: str
    model: ModelConfig
    k: int
    seed: int
    questions: int
    questions_digest: str
    key: str
    demonstrations: tuple[Question, ...] = ()

    @property
    def name(self) -> str:
        """A file name: what a person looks for, then the key."""
        words = (self.model_name, self.set.name, self.method.name, f"k{self.k}", f"s{self.seed}", self.key)
        return "-".join(_UNSAFE.sub("_", word) for word in words)

    @property
    def label(self) -> str:
        """For a person."""
        return f"{self.method.name} on {self.set.name} with {self.model_name}, k={self.k}, seed {self.seed}"


def make_plan(config: EvalConfig) -> list[PlannedCell]:
    """The cells, those of one model and method together.

    Everything that can be checked without a model is: raises `MethodError`, `EvaluationError`, `CorpusError`,
    `RetrievalError`, `BankError` or `MetaInitError`.
    """
    questions = {one.name: _questions(one) for one in config.sets}
    passages = {one.name: _passages_digest(one) for one in config.sets}
    models = {name: cache_keys.model_digest(model.path) for name, model in config.models.items()}
    checked, coverage = cache(_checked), Coverage(questions, max(config.k))
    cells = []
    shown = {
        (method.name, one.name): find_demonstrations(method, one, questions[one.name])
        for method, one in product(config.methods, config.sets)
    }
    for name, method, one in product(config.models, config.methods, config.sets):
        before = shown[method.name, one.name]
        asked = cache_keys.questions_digest(questions[one.name])
        for k, seed in _repetitions(config, method, one):
            resolved = resolve(method, model=name, set=one.name, seed=seed)
            content = {
                "version": _RESULTS,
                "model": [config.models[name].model_dump(mode="json"), models[name]],
                "questions": asked,
                "method": [resolved.model_dump(mode="json", exclude={"demonstrations"}), checked(resolved)],
                "passages": [one.passages.model_dump(mode="json"), passages[one.name]] if k else None,
                "asking": [one.name, name, k, seed, *_asking(config, one)],
                "scoring": _scoring(one, questions[one.name]),
                "demonstrations": cache_keys.demonstrations_digest(before),
            }
            key = cache_keys.digest(content)[:12]
            most = most_passages(one.passages, questions[one.name], k)
            resolved.check_fits(config.models[name].subspace, most)
            coverage.check(resolved, one, seed)
            count = len(questions[one.name])
            cells.append(PlannedCell(one, resolved, name, config.models[name], k, seed, count, asked, key, before))
    return cells


def resolve(method: MethodSettings, **names: Any) -> MethodSettings:
    """The method with `{model}`, `{set}` and `{seed}` filled in; one that starts at random adds the seed to its own."""
    filled = type(method).model_validate(_filled(method.model_dump(mode="json"), names))
    return filled.seeded(names.get("seed", 0))


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        for name, word in names.items():
            value = value.replace(f"{{{name}}}", str(word))
        return value
    if isinstance(value, dict):
        return {key: _filled(inner, names) for key, inner in value.items()}
    return [_filled(inner, names) for inner in value] if isinstance(value, list | tuple) else value


def _repetitions(config: EvalConfig, method: MethodSettings, one: EvalSetConfig) -> Iterator[tuple[int, int]]:
    """The (k, seed) that can differ: no k for what does not retrieve, one seed for what has nothing random."""
    retrieves = method.info.retrieves
    varies = (retrieves and one.passages.is_random) or resolve(method, seed=0) != resolve(method, seed=1)
    return product(config.k if retrieves else (0,), config.seeds if varies else config.seeds[:1])


def _asking(config: EvalConfig, one: EvalSetConfig) -> list[Any]:
    return [one.max_new_tokens or config.max_new_tokens, config.context_tokens, config.too_long]


def _scoring(one: EvalSetConfig, questions: Sequence[Question]) -> list[Any]:
    """How answers are scored, by the kinds of questions that there are: what is for others decides nothing."""
    kinds = {question.kind for question in questions}
    return [
        [one.scoring_rules, one.cut] if "open" in kinds else None,
        _READING if kinds - {"open"} else None,
    ]


def _questions(one: EvalSetConfig) -> list[Question]:
    questions = read_questions(one)
    if not questions:
        raise EvaluationError(f"set {one.name!r}: {one.path} has no question")
    check_passages(one.name, one.passages, questions)
    return questions


def _passages_digest(one: EvalSetConfig) -> list[str]:
    config = one.passages
    found = [cache_keys.index_digest(config.index)] if config.index else []
    return found + ([cache_keys.corpus_digest(config.corpus)] if config.corpus else [])


def _checked(method: MethodSettings) -> list[str]:
    """Hashes of what the method uses, once it is known to be there and to fit."""
    method.check()
    uses = method.artefacts
    found = [cache_keys.meta_init_digest(uses.meta_init)] if uses.meta_init else []
    found += [cache_keys.bank_digest(uses.bank, uses.bank_version)] if uses.bank else []
    return found + ([cache_keys.directory_digest(uses.adapter)] if uses.adapter else [])
