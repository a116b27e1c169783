"""What LoRAs are trained on: tokens of passages, questions and instructions, and the examples of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from regrad.data.augmented import Augmented, Pair, read_augmented
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion, read_tasks
from regrad.errors import TrainingError
from regrad.gradients.extractor import encode_passage
from regrad.models.batching import TokenBatch, pad_batch
from regrad.models.loading import LanguageModel
from regrad.training.lora.config import FinetuneConfig

_STOPS = (".", ",", ";", ":", "!", "?")
_LEAST_WORDS = 3


@dataclass(frozen=True)
class Example:
    """Token ids, of which the first `start` are given and the others predicted."""

    ids: tuple[int, ...]
    start: int = 1

    @property
    def predicts(self) -> bool:
        """Whether there is anything to predict."""
        return len(self.ids) > max(1, self.start)


def example_batch(lm: LanguageModel, examples: Sequence[Example]) -> TokenBatch:
    """Examples as padded tensors."""
    return pad_batch([item.ids for item in examples], [item.start for item in examples], lm.pad_id, lm.device)


def longest(lm: LanguageModel, max_tokens: int) -> int:
    """The tokens that an example may have: the model's context, or `max_tokens` if that is less."""
    return min(max_tokens, lm.context_length or max_tokens)


def passage_example(lm: LanguageModel, passage: Passage) -> Example:
    """All of a passage, as in continual pre-training: the text whose gradient would be its atom."""
    return Example(tuple(encode_passage(lm, passage)))


def suffix_example(lm: LanguageModel, passage: Passage) -> Example:
    """The second part of a passage's text, predicted from the first.

    They meet at the first full stop, else comma and so on, that leaves three words on both sides, else in the middle.
    """
    text = lm.config.prompts.passage_text(passage)
    cut = _middle(text)
    prefix = [*lm.bos, *lm.encode(text[:cut])]
    return Example((*prefix, *lm.encode(text[cut:]), *lm.ending), len(prefix))


def _middle(text: str) -> int:
    for stop in _STOPS:
        for place in (i + 1 for i, character in enumerate(text) if character == stop):
            if min(len(text[:place].split()), len(text[place:].split())) >= _LEAST_WORDS:
                return place
    words = text.split(" ")
    return len(" ".join(words[: len(words) // 2]))


def instruction_example(lm: LanguageModel, item: Augmented) -> Example:
    """A passage and its questions with their answers in one text, all of it predicted: instruction pre-training.

    It is text to read, as a passage is, and no chat: a chat template is not put around it.
    """
    prompts = lm.config.prompts
    asked = "".join(
        prompts.question.format(question=pair.question) + prompts.answer_text(pair.answer) + prompts.stop
        for pair in item.pairs
    )
    return Example((*lm.bos, *lm.encode(prompts.context_text([item.passage]) + asked), *lm.ending))


def question_example(
    lm: LanguageModel, question: str, answer: str, passages: Sequence[Passage] = (), max_tokens: int = 1 << 30
) -> Example:
    """The answer, predicted from the prompt, in which `passages` stand best last.

    The worst passages are left out until it is short enough; without any it may still be too long.
    """
    limit, shown = longest(lm, max_tokens), list(passages)
    while True:
        example = _asked(lm, question, answer, shown)
        if not shown or len(example.ids) <= limit:
            return example
        shown = shown[1:]


def _asked(lm: LanguageModel, question: str, answer: str, passages: Sequence[Passage]) -> Example:
    """The prompt as it is asked, with the model's chat template if it has one, then the answer and the end."""
    prompt = lm.encode_prompt(lm.config.prompts.prompt(question, passages))
    return Example((*prompt, *lm.encode(lm.config.prompts.answer_text(answer)), *lm.ending), len(prompt))


def adapter_examples(lm: LanguageModel, item: Augmented, pairs: int | None = None) -> list[Example]:
    """PRAG's sequences of one passage, in its order, each predicted as a whole, the chat template included.

    The first half of the questions (two of three) comes with the passage in the prompt and again with each rewrite;
    the others come without.
    """
    asked = item.pairs[:pairs]
    with_text = (len(asked) + 1) // 2
    texts = [item.passage, *(Passage(item.passage.id, item.passage.title, text) for text in item.rewrites)]
    read = [_whole(lm, pair, [text]) for pair in asked[:with_text] for text in texts]
    return read + [_whole(lm, pair) for pair in asked[with_text:]]


def _whole(lm: LanguageModel, pair: Pair, passages: Sequence[Passage] = ()) -> Example:
    return Example(_asked(lm, pair.question, pair.answer, passages).ids)


R = TypeVar("R")


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


def read_examples(config: FinetuneConfig, lm: LanguageModel) -> Sequence[Example]:
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


def digest(config: FinetuneConfig) -> str:
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
