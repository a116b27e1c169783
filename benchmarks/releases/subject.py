"""The base that both sides load, the lab's tasks, and a start that was trained on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from regrad.data.augmented import Augmented
from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.lab.config import LabConfig
from regrad.lab.files import augmented_passages, documents, lab_tasks
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.local_files import resolve_path
from regrad.prompts import PromptFormat, PromptStyle
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.trainer import meta_train_in_process

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
QUESTION = "Question: {question}\nAnswer:"
"""What the release's short prompt is set to: its own ends with a blank, after which the lab's base knows no answer."""
# As the release ends answers and passages: a line break, and no end token.
RELEASE_PROMPTS = {"question": QUESTION, "answer": " {answer}\n", "end_token": False}
_PRAG_USER = (
    "You should answer the question by referring to the knowledge provided below and integrating your own knowledge."
)
PRAG_PROMPTS = PromptFormat(
    passage="{text}",
    context="Passage {index}: {passage}\n",
    question="Question: {question}",
    answer=" {answer}.",
    default=PromptStyle(
        open=f"{_PRAG_USER}\n{{context}}\n\n{{question}}", open_alone=f"{_PRAG_USER}\n\n\n{{question}}"
    ),
    chat=True,
    answer_start="The answer is",
    end_token=False,
)


@dataclass(frozen=True)
class Subject:
    """The lab's base in a directory of its own; its tokenizer begins a text with the start token, as Llama's does."""

    folder: Path

    @staticmethod
    def make(folder: Path) -> Subject:
        """Copy the base, and give its tokenizer what the releases ask of one."""
        base = folder / "base"
        shutil.copytree(resolve_path("package:regrad.lab/base"), base)
        tokenizer = AutoTokenizer.from_pretrained(str(base))
        start = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(str(base))
        return Subject(folder)

    @property
    def base(self) -> str:
        """Where the base is."""
        return str(self.folder / "base")

    @cached_property
    def world(self) -> World:
        """The lab's people."""
        return World()

    @property
    def shipped(self) -> ModelConfig:
        """The lab's model with regrad's defaults: an end token, the prompt that it was trained on."""
        found = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
        return found.model_copy(update={"path": self.base})

    @property
    def release(self) -> ModelConfig:
        """The same with the release's prompts."""
        return _prompted(self.shipped, RELEASE_PROMPTS)

    def passages(self, count: int) -> list[Passage]:
        """Of people whom no task is about."""
        return documents(self.world.held_out[:count])

    def tasks(self, count: int, k: int, seed: int = 5) -> list[Task]:
        """One question and the k passages that it rests on, a task each."""
        records = lab_tasks(
            self.world.meta, LabConfig(people_per_record=max(3, k), context_passages=max(2, k)), count, seed
        )
        return [_one_question(Task.from_record(record), k, number) for number, record in enumerate(records)]

    def augmented(self, count: int) -> list[Augmented]:
        """Passages with a rewrite and three questions."""
        people = self.world.held_out[:count]
        return list(augmented_passages(people, documents(people), 3))

    def untrained(self, lm: LanguageModel) -> MetaInit:
        """The start of a training: B is zero, alpha 0.01."""
        return random_meta_init(lm, 0.01)

    def trained(self, steps: int) -> MetaInit:
        """A start learned by the lab's own settings (alpha from 10) with the release's prompts."""
        path = self.folder / "tasks.jsonl"
        records = lab_tasks(self.world.meta[:-100], LabConfig(), 2 * steps, seed=11)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        values = [f"tasks={path}", "dev=null", f"output={self.folder}/unused", f"optimizer.steps={steps}"]
        config = load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), values)
        return meta_train_in_process(config.model_copy(update={"model": self.release}))


def load(config: ModelConfig) -> LanguageModel:
    """In float32 on the CPU."""
    return load_language_model(config.model_copy(update={"dtype": "float32"}), "cpu")


def _prompted(config: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    return config.model_copy(update={"prompts": config.prompts.model_copy(update=changes)})


def _one_question(task: Task, k: int, number: int) -> Task:
    question = task.questions[number % len(task.questions)]
    passages = tuple(task.passages[place] for place in question.context[:k])
    return Task(passages, (TaskQuestion(question.question, question.answer, tuple(range(k))),), f"{task.id}")
