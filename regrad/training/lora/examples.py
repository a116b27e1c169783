"""What LoRAs are trained on: passages, questions and instructions as tokens, and the examples of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from regrad.data.augmented import Augmented, read_augmented
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.data.tasks import Task, TaskQuestion, read_tasks
from regrad.digests import records_digest
from regrad.errors import TrainingError
from regrad.gradients.extractor import encode_passage
from regrad.models.batching import TokenBatch
from regrad.models.packing import Begun, packed_batch
from regrad.prompts import with_most_passages
from regrad.training.lora.config import AdapterConfig, AdaptersConfig, FinetuneConfig

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

_STOPS = (".", ",", ";", ":", "!", "?")
_LEAST_WORDS = 3


@dataclass(frozen=True)
class Example:
    """Token ids; the first `start` are given, the others are predicted. `passages` are those with adapters applied.

    `others` are more questions of its task, which make one example with it: its loss is the mean of theirs and its own.
    """

    ids: tuple[int, ...]
    start: int = 1
    passages: tuple[Passage, ...] = ()
    others: tuple[Example, ...] = ()

    @property
    def each(self) -> list[Example]:
        """Its questions one by one."""
        return [replace(self, others=()), *self.others] if self.others else [self]

    @property
    def sequences(self) -> list[Begun]:
        """The ids of its questions, and how many of them are given."""
        return [(one.ids, one.start) for one in self.each]

    def behind(self, virtual: Sequence[int]) -> Example:
        """The same behind virtual tokens: the same tokens are predicted."""
        start, others = len(virtual) + max(1, self.start), tuple(one.behind(virtual) for one in self.others)
        return replace(self, ids=(*virtual, *self.ids), start=start, others=others) if virtual else self

    @property
    def predicts(self) -> bool:
        """Whether each of its questions has a token to predict."""
        return all(len(ids) > max(1, start) for ids, start in self.sequences)


def example_batch(lm: LanguageModel, examples: Sequence[Example]) -> TokenBatch:
    """Examples as padded tensors, each in one row."""
    return packed_batch(lm, [item.sequences for item in examples])


def passage_example(lm: LanguageModel, passage: Passage) -> Example:
    """All of a passage, as in continual pre-training: the text whose gradient would be its atom."""
    return Example(tuple(encode_passage(lm, passage)))


def suffix_example(lm: LanguageModel, passage: Passage) -> Example:
    """The second part of a passage's text, predicted from the first.

    They meet at the first full stop, else comma and so on, that leaves three words on both sides, else in the middle.
    """
    text = lm.config.prompts.passage_text(passage)
    words = text.split(" ")
    middle = len(" ".join(words[: len(words) // 2]))
    stops = (i + 1 for stop in _STOPS for i, character in enumerate(text) if character == stop)
    balanced = (i for i in stops if min(len(text[:i].split()), len(text[i:].split())) >= _LEAST_WORDS)
    cut = next(balanced, middle)
    prefix = [*lm.bos, *lm.encode(text[:cut])]
    return Example((*prefix, *lm.encode(text[cut:]), *lm.ending), len(prefix))


def instruction_example(lm: LanguageModel, item: Augmented) -> Example:
    """A passage and its questions with their answers in one text, all of it predicted: instruction pre-training.

    It is a text, as a passage is, and no chat, so it is not wrapped in the chat template.
    """
    prompts = lm.config.prompts
    asked = "".join(prompts.asked(pair.asked) + prompts.answer_text(pair.answer) + prompts.stop for pair in item.pairs)
    return Example((*lm.bos, *lm.encode(prompts.context_text([item.passage]) + asked), *lm.ending))


def question_example(
    lm: LanguageModel, question: Question, passages: Sequence[Passage] = (), max_tokens: int = 1 << 30
) -> Example:
    """The first accepted answer, predicted from the prompt; `passages` come best first.

    The worst passages are left out until the example fits; it may still be too long without any.
    """
    limit = lm.within(max_tokens)
    _, example = with_most_passages(
        len(passages), lambda kept: _asked(lm, question, passages[:kept]), lambda made: len(made.ids) <= limit
    )
    return example


def _asked(
    lm: LanguageModel, question: Question, passages: Sequence[Passage], demonstrations: Sequence[Question] = ()
) -> Example:
    """The prompt as it is asked, with the model's chat template if it has one, then the answer and the end."""
    prompts = lm.config.prompts
    prompt = lm.encode_prompt(prompts.prompt_for(question, prompts.ordered(passages), demonstrations=demonstrations))
    return Example((*prompt, *lm.encode(prompts.reply(question.answers[0])), *lm.ending), len(prompt))


def adapter_examples(
    lm: LanguageModel, item: Augmented, config: AdapterConfig, demonstrations: Sequence[Question] = ()
) -> list[Example]:
    """PRAG's sequences of one passage, in its order, each predicted as a whole: the chat template and the
    demonstrations included.

    The first half of the questions (two of three) comes with the passage in the prompt and again with each rewrite;
    the others come without.
    """
    full = config.answers == "full"
    asked = [
        replace(pair.asked, answers=(pair.full_answer,)) if full else pair.asked
        for pair in item.pairs
        if pair.full_answer or not full
    ][: config.pairs]
    with_text = (len(asked) + 1) // 2
    texts = [item.passage, *(Passage(item.passage.id, item.passage.title, text) for text in item.rewrites)]
    read = [_asked(lm, question, [text], demonstrations) for question in asked[:with_text] for text in texts]
    alone = [_asked(lm, question, (), demonstrations) for question in asked[with_text:]]
    return [Example(example.ids) for example in read + alone]


def adapter_demonstrations(config: AdaptersConfig) -> list[Question]:
    """The solved questions that adapters are trained with; raises `EvaluationError` for a file that is wrong."""
    if config.demonstrations is None:
        return []
    return read_questions(QuestionSetConfig(name="demonstrations", path=config.demonstrations))


R = TypeVar("R")


class Examples(Sequence[Example]):
    """Examples made from their records on access: of a large file only those that are drawn cost anything."""

    def __init__(self, records: Iterable[R], make: Callable[[R], Example]) -> None:
        self._records, self._make = list(records), make

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._make(record) for record in self._records[number]]
        return self._make(self._records[number])


def read_examples(config: FinetuneConfig, lm: LanguageModel, virtual: Sequence[int] = ()) -> Sequence[Example]:
    """What the objective is trained on, in the order of the files, behind `virtual` tokens if there are any.

    Raises `CorpusError` for a bad record.
    """
    if config.objective == "passages":
        return Examples(read_passages(config.corpus or ""), lambda one: passage_example(lm, one).behind(virtual))
    if config.objective == "instruction":
        return Examples(read_augmented(config.corpus or ""), lambda one: instruction_example(lm, one).behind(virtual))
    room = lm.within(config.max_tokens) - len(virtual)

    def make(item: tuple[Task, Sequence[TaskQuestion]]) -> Example:
        task, questions = item
        found = tuple(task.passages[position] for position in questions[0].context[: config.k])
        shown = found if config.objective == "questions-with-passages" else ()
        first, *others = [question_example(lm, one.asked, shown, room) for one in questions]
        return replace(first, passages=found if config.adapters else (), others=tuple(others)).behind(virtual)

    tasks = read_tasks(config.tasks or "")
    return Examples(((task, some) for task in tasks for some in _together(task, config)), make)


def _together(task: Task, config: FinetuneConfig) -> list[Sequence[TaskQuestion]]:
    """The questions of a task by example: those on the same passages, in as few and as even parts as they may be."""
    most = config.questions_together or 1
    if most == 1:
        return [[question] for question in task.questions]
    alike: dict[tuple[int, ...], list[TaskQuestion]] = {}
    for question in task.questions:
        alike.setdefault(question.context[: config.k], []).append(question)
    return [part for asked in alike.values() for part in _even_parts(asked, -(-len(asked) // most))]


def _even_parts(questions: Sequence[TaskQuestion], parts: int) -> Iterator[Sequence[TaskQuestion]]:
    bounds = [number * len(questions) // parts for number in range(parts + 1)]
    return (questions[first:last] for first, last in pairwise(bounds))


def data_digest(config: FinetuneConfig) -> str:
    """A hash of the data. Reads all of it, so that its faults are known before a model is loaded.

    Raises `CorpusError` for a bad record, and `TrainingError` if there is none at all.
    """
    if config.objective == "passages":
        records: Iterable[object] = read_passages(config.corpus or "")
    elif config.objective == "instruction":
        records = read_augmented(config.corpus or "")
    else:
        records = read_tasks(config.tasks or "")
    stream = iter(records)
    first = list(islice(stream, 1))
    if not first:
        uri = config.corpus or config.tasks
        raise TrainingError(f"{uri} holds nothing to train on", code="nothing_to_train_on", uri=uri)
    return records_digest(chain(first, stream))
