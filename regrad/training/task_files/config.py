"""`regrad tasks`: which questions, which passages, and what is kept for dev."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from regrad.data.question_files import unpacked_name
from regrad.data.question_sets import QuestionSetConfig
from regrad.retrieval.config import RetrieverConfig
from regrad.settings import Location, Settings, invalid


class TaskQuestionsConfig(QuestionSetConfig):
    """Any question set that `regrad eval` reads; its name is the prefix of its tasks' ids."""

    name: str = Field(
        "", description="prefix of the task ids, so that sets do not collide; empty: the file's name without its ending"
    )

    @property
    def label(self) -> str:
        """The name, or the file's."""
        return self.name or unpacked_name(self.path).partition(".")[0]


class TaskPassagesConfig(Settings):
    """Where the passages of a question come from; the best comes first, as a retriever has it."""

    source: Literal["index", "gold", "given"] = Field(
        "index",
        description="index: what is retrieved; gold: those that the question names, found beside it, in the corpus or "
        "the index; given: those that come with it, as in data_aug",
    )
    k: int = Field(3, ge=1, description="maximum number of passages per question, distractors not counted")
    gold: Literal["any", "in", "required", "out"] = Field(
        "any",
        description="with index or given; any: gold passages as they come; in: missing ones replace the worst "
        "passages; required: a question is left out if they are missing; out: they are removed",
    )
    max_words: int | None = Field(
        None, ge=1, description="longer passages are skipped; `regrad train` stops at dev tasks that are too long"
    )
    distractors: int = Field(0, ge=0, description="number of distractor passages to append")
    distractors_from: Literal["random", "retrieved"] = Field(
        "random",
        description="any of the corpus (without one, any passage of any question); or the next best of the index",
    )
    index: Location | None = Field(None, description="made by `regrad index`")
    corpus: Location | None = Field(
        None, description="the corpus that gold passages and random distractors are taken from"
    )
    retrieval: RetrieverConfig = RetrieverConfig()

    @property
    def searches(self) -> bool:
        """Whether anything is retrieved."""
        return self.source == "index" or (self.distractors > 0 and self.distractors_from == "retrieved")

    @model_validator(mode="after")
    def _complete(self) -> TaskPassagesConfig:
        if self.searches and self.index is None:
            raise invalid("index_missing", "`index` is required to retrieve: a directory that `regrad index` made")
        if self.source == "gold" and self.gold != "any":
            raise invalid(
                "gold_needs_others",
                f"`gold: {self.gold}` is for retrieved or given passages; with `source: gold` all are gold",
            )
        return self


class TasksConfig(Settings):
    """`regrad tasks`: make the tasks of `regrad train` of a question set."""

    questions: TaskQuestionsConfig
    passages: TaskPassagesConfig
    output: Location = Field(
        description="a directory: train.jsonl, dev.jsonl, corpus.jsonl, left_out.jsonl, report.json"
    )
    questions_per_task: int = Field(
        1, ge=1, description="at most N questions on the same passages share a task, and so their gradients"
    )
    limit: int | None = Field(None, ge=1, description="maximum number of questions for training, drawn by the seed")
    dev_fraction: float = Field(0.0, ge=0, lt=1, description="share of the questions kept for dev")
    dev_limit: int | None = Field(None, ge=1, description="maximum number of questions for dev, drawn by the seed")
    split_by: Literal["article", "passage", "question"] = Field(
        "article",
        description="what train and dev never share: the gold passage's title, the gold passage, or the question",
    )
    seed: int = Field(0, description="seed of the split, the limits and random distractors")
