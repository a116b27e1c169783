"""Is a task, or are those of a file, within the limits? Needs a tokenizer and a context length, but no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from regrad.data.passages import Passage
from regrad.data.tasks import ScannedTask, Task, TaskQuestion, read_tasks, scan_tasks
from regrad.errors import CorpusError, ModelError
from regrad.models.config import ModelConfig
from regrad.models.loading import context_length, resolve_path
from regrad.models.tokens import prompt_ids, token_ids
from regrad.training.meta.config import ShapeConfig


@dataclass
class Lengths:
    """Counts tokens as training does."""

    tokenizer: PreTrainedTokenizerBase
    model: ModelConfig
    context: int

    @staticmethod
    def of(model: ModelConfig) -> Lengths:
        """Load the tokenizer and the model's configuration; raises `ModelError` if they are not there."""
        path = resolve_path(model.path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"no tokenizer could be loaded from {model.path}: {error}") from error
        return Lengths(tokenizer, model, context_length(config) or 2**30)

    def check(self, task: Task, where: str, shape: ShapeConfig) -> None:
        """Raise `CorpusError` if a passage or a question with its answer is too long, or a passage has no token."""
        limit = min(shape.max_passage_tokens, self.context)
        for number, passage in enumerate(task.passages):
            found = self.passage(passage)
            if found > limit:
                raise CorpusError(f"{where} passage {number}: {found} tokens, more than {limit}")
            if found < 2:
                raise CorpusError(f"{where} passage {number}: nothing to predict in fewer than two tokens")
        limit = min(shape.max_tokens, self.context)
        for number, question in enumerate(task.questions):
            found = self.question(task, question, shape)
            if found > limit:
                raise CorpusError(
                    f"{where} question {number}: prompt and answer have {found} tokens, more than {limit}"
                )

    def check_dev(self, task: Task, where: str, shape: ShapeConfig, max_new_tokens: int) -> None:
        """The same, and raise `CorpusError` if a prompt leaves no room for an answer of `max_new_tokens`."""
        self.check(task, where, shape)
        for number, question in enumerate(task.questions):
            prompt = self.question(task, question, shape) - self._count(self.model.prompts.answer_text(question.answer))
            if prompt + max_new_tokens > self.context:
                raise CorpusError(
                    f"{where} question {number}: the prompt has {prompt} tokens and {max_new_tokens} may be added, "
                    f"but the model's context is {self.context}"
                )

    def passage(self, passage: Passage) -> int:
        """Tokens of a passage with its start and end."""
        start = self.tokenizer.bos_token_id is not None
        return start + self._count(self.model.prompts.atom_text(passage)) + self._end

    def question(self, task: Task, question: TaskQuestion, shape: ShapeConfig) -> int:
        """Tokens of prompt and answer; in the prompt only the task's first `k` passages of this question."""
        context = [task.passages[i] for i in question.context[: shape.k]] if shape.in_prompt else []
        prompt = self.model.prompts.prompt(question.question, context)
        ids = prompt_ids(self.tokenizer, self.model.prompts, prompt)
        return len(ids) + self._count(self.model.prompts.answer_text(question.answer)) + self._end

    @property
    def _end(self) -> int:
        return int(self.model.prompts.end_token and self.tokenizer.eos_token_id is not None)

    def _count(self, text: str) -> int:
        return len(token_ids(self.tokenizer, self.model.prompts, text))


def scan_file(uri: str, lengths: Lengths, shape: ShapeConfig) -> Iterator[ScannedTask]:
    """All records of one file of tasks; one that is longer than `shape` or the model allows comes with its problem."""
    return scan_tasks(uri, lambda task, where: lengths.check(task, where, shape))


def check_dev_tasks(uri: str, lengths: Lengths, shape: ShapeConfig, max_new_tokens: int) -> str:
    """Raise `CorpusError` for the first dev task that could not be scored; returns a hash of all of them."""
    digest = hashlib.sha256()
    for task in read_tasks(uri):
        lengths.check_dev(task, f"{uri} task {task.id}", shape, max_new_tokens)
        digest.update(json.dumps(task.to_record()).encode())
    return digest.hexdigest()[:16]
