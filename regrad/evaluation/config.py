"""`regrad eval`: which methods answer which question sets, from which passages, with which model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from regrad.data.question_sets import QuestionSetConfig
from regrad.methods.policies import OnOverflow
from regrad.methods.registry import MethodConfig
from regrad.models.config import ModelConfig
from regrad.retrieval.config import RetrieverConfig
from regrad.settings import Location, Settings, WorkersConfig, invalid


class PassagesConfig(Settings):
    """Where the passages of a set's questions come from; each question gets k of them, best first."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"bm25": "retrieval.bm25", "fill": "distractors"}

    source: Literal["index", "given", "gold", "random"] = Field(
        "index",
        description="index: retrieved from an index; given: those that come with the question; gold: those that the "
        "question names; random: any of the corpus (a control)",
    )
    index: Location | None = Field(
        None, description="an index of `regrad index`; for `index`, `gold` and `distractors: retrieved`"
    )
    corpus: Location | None = Field(
        None, description="the corpus; for `random`, `distractors: random`, and `gold` without an index"
    )
    distractors: Literal["random", "retrieved"] | None = Field(
        None, description="with `gold`: other passages up to k, random ones or the next best of the index"
    )
    shuffle: bool = Field(False, description="shuffle the passages instead of ordering them by rank")
    retrieval: RetrieverConfig = RetrieverConfig()

    @property
    def is_random(self) -> bool:
        """Whether the seed decides which passages a question gets or in which order."""
        return self.shuffle or "random" in (self.source, self.distractors)

    @model_validator(mode="after")
    def _complete(self) -> PassagesConfig:
        if self.distractors and self.source != "gold":
            raise invalid("distractors_without_gold", "`distractors` are added to `source: gold`")
        if (self.source == "index" or self.distractors == "retrieved") and self.index is None:
            raise invalid("index_missing", "`index` is required: a directory that `regrad index` made")
        if "random" in (self.source, self.distractors) and self.corpus is None:
            raise invalid("corpus_missing", "`corpus` is required: random passages are drawn from it")
        if self.source == "gold" and self.index is None and self.corpus is None:
            raise invalid("passages_missing", "`index` or `corpus` is required: gold passages are looked up in it")
        return self


class EvalSetConfig(QuestionSetConfig):
    """A question set, where its passages come from, how long its answers may be, and which demonstrations it has."""

    passages: PassagesConfig
    max_new_tokens: int | None = Field(None, ge=1, description="null: the run's")
    demonstrations: Location | None = Field(
        None, description="a file of solved questions, in the set's own format, for methods that ask for them"
    )


class EvalBatchConfig(Settings):
    """How much is computed at once. It changes answers only by rounding."""

    rows: int = Field(32, ge=1, description="questions decoded together")
    cached_tokens: int = Field(1 << 20, ge=1, description="limit of the KV cache: rows times the longest row")
    questions: int = Field(128, ge=1, description="questions whose updates are in memory at a time")


class EvalConfig(Settings):
    """`regrad eval`: every method on every set with every model, for every k and seed, and a report.

    In a method's locations `{model}`, `{set}` and `{seed}` are replaced by the names and the number.
    """

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"too_long": "on_overflow"}

    output: Location
    models: dict[str, ModelConfig] = Field(min_length=1, description="the models, by name")
    sets: tuple[EvalSetConfig, ...] = Field(min_length=1)
    methods: tuple[MethodConfig, ...] = Field(min_length=1)
    k: tuple[int, ...] = Field(
        (3,), min_length=1, description="numbers of passages per question; figures show the first one"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    metric: Literal["em", "f1"] = Field(
        "f1", description="metric for open questions in tables; closed questions use accuracy"
    )
    compare_to: str | None = Field(None, description="the method to test the others against")
    max_new_tokens: int = Field(32, ge=1)
    context_tokens: int | None = Field(
        None, ge=8, description="limit for prompt and answer together; null: the model's own"
    )
    on_overflow: OnOverflow = Field(
        "drop", description="for a prompt that exceeds the context: drop its worst passages (noted), or stop (fail)"
    )
    batch: EvalBatchConfig = EvalBatchConfig()
    cluster: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _possible(self) -> EvalConfig:
        _distinct("sets", (one.name for one in self.sets))
        _distinct("methods", (one.name for one in self.methods))
        _distinct("k", self.k)
        _distinct("seeds", self.seeds)
        if any(k < 1 for k in self.k):
            raise invalid("k_below_1", "k is at least 1; a method that retrieves nothing runs once, whatever k is")
        if bare := [one.name for one in self.methods if one.one_by_one is not None and not one.info.retrieves]:
            raise invalid("no_passages_to_read", f"method {bare[0]!r} reads no passages: leave its `one_by_one` out")
        names = [one.name for one in self.methods]
        if self.compare_to is not None and self.compare_to not in names:
            raise invalid(
                "unknown_method",
                f"compare_to is {self.compare_to!r:.60}, which is none of the methods {', '.join(names)}",
            )
        return self


def _distinct(key: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise invalid("repeated", f"{key} has {value!r:.60} twice; make them distinct")
        seen.add(value)
