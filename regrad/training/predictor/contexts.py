"""Contexts: a few demonstrations, that is, solved questions with their passages.

What is read of them, the model's states after them, the gradient steps on them, and those that a predictor learns from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regrad.data.questions import Question
from regrad.data.tasks import Task, TaskQuestion, read_tasks
from regrad.digests import records_digest
from regrad.errors import MethodError, ModelError, TokenOutOfVocabulary, TrainingError
from regrad.models.subspace import Subspace
from regrad.training.lora.batched import train_rows
from regrad.training.lora.examples import Example, example_batch, question_example
from regrad.training.predictor.config import ContextConfig, StepsConfig

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

Context = Sequence[Example]
"""The demonstrations of a context, as tokens."""

_TRIES = 50
_STATE_TOKENS = 8192


def context_of(lm: LanguageModel, demonstrations: Sequence[Question], config: ContextConfig) -> list[Example]:
    """Demonstrations as they are learned from: the prompt with the question's own passages, the first answer, the end.

    Raises `MethodError` if there are none, or if one is too long even without its passages.
    """
    if not demonstrations:
        raise MethodError(
            "an update is made of demonstrations, but the question has none; set the method's `demonstrations`, and "
            "name their file in the evaluation's set or in the server's settings",
            code="no_demonstrations",
        )
    examples = [question_example(lm, one, one.passages[: config.k], config.max_tokens) for one in demonstrations]
    limit = lm.within(config.max_tokens)
    for one, example in zip(demonstrations, examples, strict=True):
        if len(example.ids) > limit:
            raise MethodError(
                f"the demonstration {one.question!r:.80} has {len(example.ids)} tokens without any passage, but at "
                f"most {limit} fit; take it out of the file, or set max_tokens higher if the model's context allows it",
                code="demonstration_too_long",
                tokens=len(example.ids),
                limit=limit,
            )
    return examples


@torch.no_grad()
def states_of(lm: LanguageModel, contexts: Sequence[Context], updates: Mapping[Subspace, Tensor]) -> Tensor:
    """The mean of each context's final states [U, D] in float32, each at the last token of a demonstration.

    `updates` [P] are applied: of RAG-GD, W0; of DyPRAG, whose contexts are single passages, none. Raises `ModelError`
    if a state is not finite.
    """
    # Each context on its own, so that its state does not depend on what else is asked for.
    means = []
    for context in contexts:
        states = []
        for some in _chunks(context):
            batch = example_batch(lm, some)
            with lm.applied(updates):
                hidden_NTD = lm.hidden(batch.ids)
            states.append(hidden_NTD[torch.arange(len(some), device=lm.device), batch.lengths - 1].float())
        means.append(torch.cat(states).mean(0))
    found = torch.stack(means)
    if not bool(torch.isfinite(found).all()):
        raise ModelError(
            "the model's state after a demonstration or passage is not finite, so no update can be predicted from it; "
            "load the model with another `dtype`, or train the adapter again with a lower optimizer.lr",
            code="state_not_finite",
        )
    return found


def steps_on(
    lm: LanguageModel, context: Context, subspace: Subspace, start_P: Tensor, config: StepsConfig
) -> Tensor | None:
    """The LoRA `start_P` after the steps on a context [P] in float32; None if a gradient was not finite.

    The loss is the answers' mean cross-entropy, averaged over the demonstrations. A context is alone in its passes, so
    that the result does not depend on what else is asked for.
    """
    trained = train_rows(lm, start_P[None], [[context] * config.steps], config, lambda rows: {subspace: rows})
    return None if trained.failed[0] else trained.values[0].float()


def _chunks(context: Context) -> list[list[Example]]:
    """A context's demonstrations in its order, as many at once as have few enough tokens with their padding."""
    chunks: list[list[Example]] = []
    widest = 0
    for example in context:
        widest = max(widest, len(example.ids))
        if not chunks or widest * (len(chunks[-1]) + 1) > _STATE_TOKENS:
            chunks.append([])
            widest = len(example.ids)
        chunks[-1].append(example)
    return chunks


class TaskContexts(Sequence[list[Example]]):
    """The contexts that a predictor is trained on: number n is a function of the files, the seed and n.

    The demonstrations of a context are questions of one file, drawn at random, and files take turns. A question that
    does not fit the model is passed over. Raises `CorpusError` for a bad file, and `TrainingError` where too few
    questions fit.
    """

    def __init__(
        self, lm: LanguageModel, tasks: Sequence[str], config: ContextConfig, count: int, seed: int = 0
    ) -> None:
        self._lm, self._config, self._count, self._seed = lm, config, count, seed
        self._names = tasks
        self._questions = [
            [(task, question) for task in read_tasks(uri) for question in task.questions] for uri in tasks
        ]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        source = number % len(self._questions)
        questions = self._questions[source]
        rng = random.Random(f"{self._seed}/context/{number}")
        found: dict[int, Example] = {}
        for _ in range(_TRIES * self._config.demonstrations):
            drawn = rng.randrange(len(questions))
            if drawn in found:
                continue
            try:
                (found[drawn],) = context_of(self._lm, [solved(*questions[drawn])], self._config)
            except (MethodError, TokenOutOfVocabulary):
                continue
            if len(found) == self._config.demonstrations:
                return list(found.values())
        raise TrainingError(
            f"a context has {self._config.demonstrations} demonstrations, but of the {len(questions)} questions of "
            f"{self._names[source]} too few fit the model: {len(found)} were found; set context.demonstrations lower, "
            "or context.max_tokens higher",
            code="too_few_demonstrations",
            expected=self._config.demonstrations,
            found=len(found),
        )


def tasks_digest(tasks: Sequence[str]) -> str:
    """A hash of the questions. Reads all of them, so that their faults are known before a model is loaded.

    Raises `CorpusError` for a bad record.
    """
    return records_digest(task for uri in tasks for task in read_tasks(uri))


def solved(task: Task, question: TaskQuestion) -> Question:
    """A task's question as a demonstration: with its answers and the passages that it rests on, best first."""
    asked = question.asked
    passages = tuple(task.passages[position] for position in question.context)
    return Question(asked.id, asked.question, asked.answers, asked.kind, asked.choices, passages=passages)
