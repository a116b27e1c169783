"""All cells of a run, each with a key: the hash of everything that decides its result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from regrad.config import EvalConfig, EvalSetConfig, MethodConfig, ModelConfig
from regrad.errors import EvaluationError
from regrad.evaluation.questions import Question, read_questions
from regrad.evaluation.runner import fingerprints
from regrad.evaluation.runner.coverage import Coverage
from regrad.evaluation.runner.demonstrations import find_demonstrations
from regrad.evaluation.runner.passages import check_passages, most_passages
from regrad.methods import check_fits, check_method, get_method

_RESULTS = 1  # raise it when the same settings come to give other records
_READING = 2  # raise it when answers of closed questions come to be read in another way
_UNSAFE = re.compile(r"[^A-Za-z0-9.+_-]+")


@dataclass(frozen=True)
class PlannedCell:
    """One method on one set with one model, k and seed. `k` is 0 for a method that retrieves nothing."""

    set: EvalSetConfig
    method: MethodConfig
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
    models = {name: fingerprints.model_digest(model.path) for name, model in config.models.items()}
    checked, coverage = cache(_checked), Coverage(questions, max(config.k))
    cells = []
    shown = {
        (method.name, one.name): find_demonstrations(method, one, questions[one.name])
        for method, one in product(config.methods, config.sets)
    }
    for name, method, one in product(config.models, config.methods, config.sets):
        before = shown[method.name, one.name]
        asked = fingerprints.questions_digest(questions[one.name])
        for k, seed in _repetitions(config, method, one):
            resolved = resolve(method, model=name, set=one.name, seed=seed)
            content = {
                "version": _RESULTS,
                "model": [config.models[name].model_dump(mode="json"), models[name]],
                "questions": asked,
                "method": [resolved.model_dump(mode="json", exclude={"demonstrations"}), checked(resolved)],
                "passages": [one.passages.model_dump(mode="json"), passages[one.name]] if k else None,
                "asking": [one.name, name, k, seed, *_asking(config, one)],
                **_scoring(one, questions[one.name]),
            }
            if before:
                content["demonstrations"] = fingerprints.demonstrations_digest(before)
            key = fingerprints.digest(content)[:12]
            check_fits(resolved, config.models[name].subspace, most_passages(one.passages, questions[one.name], k))
            coverage.check(resolved, one, seed)
            count = len(questions[one.name])
            cells.append(PlannedCell(one, resolved, name, config.models[name], k, seed, count, asked, key, before))
    return cells


def resolve(method: MethodConfig, **names: Any) -> MethodConfig:
    """The method with `{model}`, `{set}` and `{seed}` filled in; one that starts at random adds the seed to its own."""
    values = _filled(method.model_dump(mode="json"), names)
    if get_method(method.kind).starts_at_random:
        values["seed"] += names.get("seed", 0)
    return MethodConfig.model_validate(values)


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        for name, word in names.items():
            value = value.replace(f"{{{name}}}", str(word))
        return value
    if isinstance(value, dict):
        return {key: _filled(inner, names) for key, inner in value.items()}
    return [_filled(inner, names) for inner in value] if isinstance(value, list | tuple) else value


def _repetitions(config: EvalConfig, method: MethodConfig, one: EvalSetConfig) -> Iterator[tuple[int, int]]:
    """The (k, seed) that can differ: no k for what does not retrieve, one seed for what has nothing random."""
    retrieves = get_method(method.kind).retrieves
    varies = (retrieves and one.passages.is_random) or resolve(method, seed=0) != resolve(method, seed=1)
    return product(config.k if retrieves else (0,), config.seeds if varies else config.seeds[:1])


def _asking(config: EvalConfig, one: EvalSetConfig) -> list[Any]:
    return [one.max_new_tokens or config.max_new_tokens, config.context_tokens, config.too_long]


def _scoring(one: EvalSetConfig, questions: Sequence[Question]) -> dict[str, Any]:
    """How answers are scored, as far as it is not as it always was: a cell that it does not concern keeps its key."""
    kinds = {question.kind for question in questions}
    found: dict[str, Any] = {"reading": _READING} if kinds - {"open"} else {}
    if "open" in kinds and one.scoring_rules != "squad":
        found["rules"] = one.scoring_rules
    return found | ({"cut": True} if "open" in kinds and one.cut else {})


def _questions(one: EvalSetConfig) -> list[Question]:
    questions = read_questions(one)
    if not questions:
        raise EvaluationError(f"set {one.name!r}: {one.path} has no question")
    check_passages(one.name, one.passages, questions)
    return questions


def _passages_digest(one: EvalSetConfig) -> list[str]:
    config = one.passages
    found = [fingerprints.index_digest(config.index)] if config.index else []
    return found + ([fingerprints.corpus_digest(config.corpus)] if config.corpus else [])


def _checked(method: MethodConfig) -> list[str]:
    """Hashes of what the method uses, once it is known to be there and to fit."""
    check_method(method)
    found = [fingerprints.meta_init_digest(method.meta_init)] if method.meta_init else []
    found += [fingerprints.bank_digest(method.bank, method.bank_version)] if method.bank else []
    return found + ([fingerprints.directory_digest(method.adapter)] if method.adapter else [])
