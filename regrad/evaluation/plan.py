"""All cells of a run, each with a key: a hash of everything that decides its result.

If one of these things changes, the cells that used it get another key, and run again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

from regrad.data.content_digests import corpus_digest
from regrad.data.passages import Passage
from regrad.data.question_sets import read_questions
from regrad.data.questions import Question
from regrad.digests import json_digest
from regrad.errors import EvaluationError, MethodError
from regrad.evaluation.config import EvalConfig, EvalSetConfig, PassagesConfig
from regrad.evaluation.demonstrations import ChosenDemonstrations, choose_demonstrations
from regrad.evaluation.passages import PassageFinder, check_passages
from regrad.methods.artefact_files import artefact_digests
from regrad.methods.base import MethodSettings
from regrad.models.config import ModelConfig
from regrad.models.local_files import model_digest
from regrad.retrieval.base import check_index, read_index_card

_RESULTS = 3  # raise it when the same settings come to give other records
_READING = 3  # raise it when answers of closed questions come to be read in another way
_COVERED_QUESTIONS = 64
_NOT_THE_METHODS = {"demonstrations", "index", "retrieval"}
"""Keys of a method that are hashed where they take effect: with the prompts, and with the set's passages."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.+_-]+")


class CoverageCheck:
    """Checks that banks have atoms of the passages of each set's first questions, which are looked up once a set."""

    def __init__(self, questions: Mapping[str, Sequence[Question]], k: int) -> None:
        self._questions = questions
        self._k = k
        self._found: dict[tuple[str, str | None], list[Passage]] = {}
        self._checked: set[tuple[str, str | None, str | None, int | None]] = set()

    def check(self, method: MethodSettings, one: EvalSetConfig, seed: int) -> None:
        """Raise `MethodError` if the method's bank has no atom of any of them; nothing for a method without a bank."""
        artefacts = method.artefacts
        asked = one.name, one.passages.index
        place = (*asked, artefacts.bank, artefacts.bank_version)
        if place in self._checked or not method.leaves_out:
            return
        if asked not in self._found:
            first = self._questions[one.name][:_COVERED_QUESTIONS]
            found = PassageFinder(one.passages, seed).find(first, self._k)
            self._found[asked] = [passage for each in found for passage in each.passages]
        method.check_covers(self._found[asked])
        self._checked.add(place)


def set_of_method(one: EvalSetConfig, method: MethodSettings) -> EvalSetConfig:
    """The set as a method is asked about it: with the method's own index, if it names one.

    Raises `MethodError` if the set's passages are not from an index.
    """
    if method.index is None and method.retrieval is None:
        return one
    passages = one.passages
    if passages.source != "index" or method.index is None or not method.info.retrieves:
        reason = (
            "names no `index` for its `retrieval`"
            if method.index is None
            else "retrieves nothing, but names an `index`"
            if not method.info.retrieves
            else f"names an `index`, but the passages of set {one.name!r} are {passages.source}, not from an index"
        )
        raise MethodError(
            f"method {method.name} {reason}; leave it out", code="index_not_used", method=method.name, set=one.name
        )
    changed = {"index": method.index, "retrieval": method.retrieval or passages.retrieval}
    return one.model_copy(update={"passages": passages.model_copy(update=changed)})


@dataclass(frozen=True)
class PlannedCell:
    """One method on one set with one model, k and seed; `k` is 0 for a method that retrieves nothing.

    `set` has the passages that the method is asked with. `retriever` is the kind and the name of the index that
    they are from, or another source of passages; empty without any.
    """

    set: EvalSetConfig
    method: MethodSettings
    model_name: str
    model: ModelConfig
    k: int
    seed: int
    questions: int
    questions_digest: str
    key: str
    demonstrations: ChosenDemonstrations
    retriever: str = ""

    @property
    def name(self) -> str:
        """The name of its file: what a person looks for, then the key."""
        words = (self.model_name, self.set.name, self.method.name, f"k{self.k}", f"s{self.seed}", self.key)
        return "-".join(_UNSAFE.sub("_", word) for word in words)

    @property
    def label(self) -> str:
        """What the cell is, in words."""
        return f"{self.method.name} on {self.set.name} with {self.model_name}, k={self.k}, seed {self.seed}"


def make_plan(config: EvalConfig) -> list[PlannedCell]:
    """The cells, those of one model and method together.

    Everything that can be checked without a model is: raises `MethodError`, `EvaluationError`, `CorpusError`,
    `RetrievalError`, `BankError` or `MetaInitError`.
    """
    planner = _Planner(config)
    return [
        planner.cell(name, method, one, k, seed)
        for name, method, one in product(config.models, config.methods, config.sets)
        for k, seed in repetitions(config, method, one)
    ]


class _Planner:
    """Reads, checks and hashes once the inputs that many cells share."""

    def __init__(self, config: EvalConfig) -> None:
        self._config = config
        self._questions = {one.name: _questions(one) for one in config.sets}
        self._asked = {name: questions_digest(found) for name, found in self._questions.items()}
        self._passages_digest = cache(_passages_digest)
        self._models = {name: model_digest(model.path) for name, model in config.models.items()}
        self._chosen = {
            one.name: choose_demonstrations(config.methods, one, self._questions[one.name]) for one in config.sets
        }
        self._digests = cache(artefact_digests)
        self._coverage = CoverageCheck(self._questions, max(config.k))

    def cell(self, name: str, method: MethodSettings, one: EvalSetConfig, k: int, seed: int) -> PlannedCell:
        config, model, demonstrations = self._config, self._config.models[name], self._chosen[one.name][method.name]
        resolved = resolve_method(method, model=name, set=one.name, seed=seed)
        asked_with = set_of_method(one, resolved)
        of = asked_with.passages
        limits = [one.max_new_tokens or config.max_new_tokens, config.context_tokens, config.on_overflow]
        # Changing what is hashed here, or how, makes every earlier run of a user start again.
        content = {
            "version": _RESULTS,
            "model": [model.model_dump(mode="json"), self._models[name]],
            "questions": self._asked[one.name],
            "method": [hashed_settings(resolved), self._digests(resolved)],
            "passages": [of.model_dump(mode="json"), self._passages_digest(of)] if k else None,
            "asking": [one.name, name, k, seed, *limits],
            "scoring": _scoring(one, self._questions[one.name]),
            "demonstrations": demonstrations.digest,
        }
        resolved.check_fits(model.subspace)
        self._coverage.check(resolved, asked_with, seed)
        return PlannedCell(
            set=asked_with,
            method=resolved,
            model_name=name,
            model=model,
            k=k,
            seed=seed,
            questions=len(self._questions[one.name]),
            questions_digest=self._asked[one.name],
            key=short_hash(content)[:12],
            retriever=_retriever(of) if k else "",
            demonstrations=demonstrations,
        )


def hashed_settings(method: MethodSettings) -> dict[str, Any]:
    """Those of a method that are in the keys of its cells as they are."""
    # Passages that are read together, and the first demonstrations, are hashed as before there was another way.
    later = {"one_by_one": method.one_by_one is None, "which_demonstrations": not method.searches_demonstrations}
    exclude = _NOT_THE_METHODS | {key for key, as_before in later.items() if as_before}
    return method.model_dump(mode="json", exclude=exclude)


def resolve_method(method: MethodSettings, **names: Any) -> MethodSettings:
    """The method with `{model}`, `{set}` and `{seed}` filled in; one that draws something adds the seed to its own."""

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for name, word in names.items():
                value = value.replace(f"{{{name}}}", str(word))
        elif isinstance(value, dict):
            value = {key: filled(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            value = [filled(inner) for inner in value]
        return value

    settings = type(method).model_validate(filled(method.model_dump(mode="json")))
    return settings.seeded(names.get("seed", 0))


def repetitions(config: EvalConfig, method: MethodSettings, one: EvalSetConfig) -> Iterator[tuple[int, int]]:
    """The (k, seed) that can differ: no k for a method that does not retrieve, one seed where nothing is random."""
    retrieves = method.info.retrieves
    varies = (retrieves and one.passages.is_random) or resolve_method(method, seed=0) != resolve_method(method, seed=1)
    return product(config.k if retrieves else (0,), config.seeds if varies else config.seeds[:1])


def _scoring(one: EvalSetConfig, questions: Sequence[Question]) -> list[Any]:
    """How answers are scored; only what applies to the kinds of questions in the set."""
    kinds = {question.kind for question in questions}
    return [
        [one.scoring_rules, one.prag_style_cut] if "open" in kinds else None,
        [_READING, one.reader] if kinds - {"open"} else None,
    ]


def _questions(one: EvalSetConfig) -> list[Question]:
    questions = read_questions(one)
    if not questions:
        raise EvaluationError(f"set {one.name!r}: {one.path} has no question", code="no_question", set=one.name)
    check_passages(one.name, one.passages, questions)
    return questions


def _retriever(config: PassagesConfig) -> str:
    if config.source != "index" or not config.index:
        return config.source
    # The name, too: two dense indexes, one of them trained, are what such a table is for.
    return f"{read_index_card(config.index).kind}: {config.index.rstrip('/').rpartition('/')[2]}"


def _passages_digest(config: PassagesConfig) -> list[str]:
    # Of an index its card, which has the checksum of every file: Lucene draws new ids for each build of a corpus.
    found = [short_hash(check_index(config.index, config.retrieval).model_dump())] if config.index else []
    return found + ([corpus_digest(config.corpus)] if config.corpus else [])


def short_hash(value: Any) -> str:
    """16 hex digits of a value that JSON can hold, with letters beyond ASCII as they are: keys on disk are of that."""
    return json_digest(value, ensure_ascii=False)


def questions_digest(questions: Sequence[Question]) -> str:
    """The digest of everything in the questions."""
    # Without turns, as of nearly every set, the digest is what it was before there were any.
    records = [asdict(question) for question in questions]
    return short_hash([{k: v for k, v in record.items() if k != "turns" or v} for record in records])
