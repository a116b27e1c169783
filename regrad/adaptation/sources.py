"""From files to examples, by the objective of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from regrad.adaptation.augmented import read_augmented
from regrad.adaptation.examples import Example, instruction_example, passage_example, question_example
from regrad.config import FinetuneConfig
from regrad.corpus import Passage, read_passages
from regrad.errors import TrainingError
from regrad.language_model.loading import LanguageModel

R = TypeVar("R")


class TaskQuestion(Protocol):
    """A question of a task, as `regrad.meta.tasks` has it."""

    @property
    def question(self) -> str:
        """Its text."""

    @property
    def answer(self) -> str:
        """Its answer."""

    @property
    def context(self) -> Sequence[int]:
        """The positions of its passages in the task, best first."""


class Task(Protocol):
    """A task, as `regrad.meta.tasks` has it."""

    @property
    def passages(self) -> Sequence[Passage]:
        """Its passages."""

    @property
    def questions(self) -> Sequence[TaskQuestion]:
        """Its questions."""


ReadTasks = Callable[[str], Iterable[Task]]


class Examples(Sequence[Example]):
    """Made of records when they are looked at: of a large file only those that are drawn cost anything."""

    def __init__(self, records: Iterable[R], make: Callable[[R], Example]) -> None:
        self._records, self._make = list(records), make

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._make(record) for record in self._records[number]]
        return self._make(self._records[number])


def read_examples(config: FinetuneConfig, lm: LanguageModel, read_tasks: ReadTasks) -> Sequence[Example]:
    """What the objective is trained on, in the order of the files; raises `CorpusError` for a record that is none."""
    if config.objective == "passages":
        return Examples(read_passages(config.corpus or ""), partial(passage_example, lm))
    if config.objective == "instruction":
        return Examples(read_augmented(config.corpus or ""), partial(instruction_example, lm))
    asked = ((task, question) for task in read_tasks(config.tasks or "") for question in task.questions)
    return Examples(asked, partial(_question_example, config, lm))


def _question_example(config: FinetuneConfig, lm: LanguageModel, asked: tuple[Task, TaskQuestion]) -> Example:
    task, question = asked
    shown = _shown(config, task, question)
    return question_example(lm, question.question, question.answer, shown, config.max_tokens)


def _shown(config: FinetuneConfig, task: Task, question: TaskQuestion) -> list[Passage]:
    """The passages of a question's prompt, worst first."""
    if config.objective != "questions-with-passages":
        return []
    return [task.passages[position] for position in reversed(question.context[: config.k])]


def digest(config: FinetuneConfig, read_tasks: ReadTasks) -> str:
    """A hash of the data. Reads all of it, so that what is wrong with it is known before a model is loaded.

    Raises `CorpusError` for a record that is none, and `TrainingError` if there is nothing.
    """
    if config.objective == "passages":
        records: Iterable[object] = read_passages(config.corpus or "")
    elif config.objective == "instruction":
        records = read_augmented(config.corpus or "")
    else:
        records = read_tasks(config.tasks or "")
    found, empty = sha256(), True
    for record in records:
        found.update(repr(record).encode())
        empty = False
    if empty:
        raise TrainingError(f"{config.corpus or config.tasks} holds nothing to train on")
    return found.hexdigest()[:16]
