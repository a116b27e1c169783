"""Which tasks a run trains on, and in which order: the way of a task from its file to a step.

Scan (each file by itself, with the lengths of its tasks), plan (which tasks are good, which draw takes which), place
(each task by itself, shaped for its draw), share. A job distributes scanning and placing; `TasksInMemory` does all of
it in one process.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion, duplicates, read_tasks, scan_tasks, task_files
from regrad.digests import SHORT, json_bytes, json_digest, pieces_digest
from regrad.errors import CorpusError, TokenOutOfVocabulary
from regrad.models.architectures import architecture_for, context_length
from regrad.models.checkpoint import load_without_weights
from regrad.models.config import ModelConfig
from regrad.models.local_files import resolve_path
from regrad.models.tokens import check_known, prompt_ids_of, token_ids_of
from regrad.text import counted
from regrad.training.meta.config import MetaTrainConfig, ShapeConfig
from regrad.training.sampler import Sampler, SampleSource
from regrad.training.workers import Workers

logger = logging.getLogger(__name__)

_POOL = 2048
_SHOWN = 5


@dataclass
class Lengths:
    """Counts and checks tokens as training does, with a tokenizer, the context length and the number of tokens that the
    model knows, but no weights.
    """

    tokenizer: PreTrainedTokenizerBase
    model: ModelConfig
    context: int
    vocabulary: int

    @staticmethod
    def of(model: ModelConfig) -> Lengths:
        """Load the tokenizer and the model's configuration; raises `ModelError` for a model that cannot be trained."""
        config, tokenizer = load_without_weights(resolve_path(model.path), model.path)
        text_config = config.get_text_config()
        architecture_for(text_config.model_type).windows(text_config)
        return Lengths(tokenizer, model, context_length(config) or 2**30, text_config.vocab_size)

    def check(self, task: Task, where: str, shape: ShapeConfig) -> None:
        """Raise `CorpusError` if a passage or a question with its answer is too long, or a passage has no token.

        The same for a token that the model does not know.
        """
        try:
            self._check_lengths(task, where, shape)
        except TokenOutOfVocabulary as error:
            raise CorpusError(f"{where}: {error}", code="token_out_of_vocabulary", **error.fields) from error

    def _check_lengths(self, task: Task, where: str, shape: ShapeConfig) -> None:
        limit = min(shape.max_passage_tokens, self.context)
        for number, found in enumerate(self._passages(task.passages)):
            if found > limit:
                raise CorpusError(
                    f"{where} passage {number}: {found} tokens, more than {limit}",
                    code="passage_too_long",
                    passage=number,
                    tokens=found,
                    limit=limit,
                )
            if found < 2:
                raise CorpusError(
                    f"{where} passage {number}: nothing to predict in fewer than two tokens",
                    code="passage_too_short",
                    passage=number,
                )
        limit = min(shape.max_tokens, self.context)
        for number, (prompt, answer) in enumerate(self._questions(task, task.questions, shape)):
            if prompt + answer > limit:
                raise CorpusError(
                    f"{where} question {number}: prompt and answer have {prompt + answer} tokens, more than {limit}",
                    code="question_too_long",
                    question=number,
                    tokens=prompt + answer,
                    limit=limit,
                )

    def check_dev(self, task: Task, where: str, shape: ShapeConfig, max_new_tokens: int) -> None:
        """As `check`; also raise `CorpusError` if a prompt leaves no room for an answer of `max_new_tokens`."""
        self.check(task, where, shape)
        for number, (prompt, _) in enumerate(self._questions(task, task.questions, shape)):
            if prompt + max_new_tokens > self.context:
                raise CorpusError(
                    f"{where} question {number}: the prompt has {prompt} tokens and {max_new_tokens} may be added, "
                    f"but the model's context is {self.context}",
                    code="no_room_for_answer",
                    question=number,
                    tokens=prompt,
                    limit=self.context,
                )

    def passage(self, passage: Passage) -> int:
        """Tokens of a passage with its start and end."""
        return next(self._passages([passage]))

    def question(self, task: Task, question: TaskQuestion, shape: ShapeConfig) -> int:
        """Tokens of prompt and answer; in the prompt only the task's first `k` passages of this question."""
        return sum(next(self._questions(task, [question], shape)))

    def _passages(self, passages: Sequence[Passage]) -> Iterator[int]:
        around = int(self.tokenizer.bos_token_id is not None) + self._end
        texts = [self.model.prompts.atom_text(passage) for passage in passages]
        for ids in token_ids_of(self.tokenizer, self.model.prompts, texts):
            yield self._known(ids) + around

    def _questions(
        self, task: Task, questions: Sequence[TaskQuestion], shape: ShapeConfig
    ) -> Iterator[tuple[int, int]]:
        """Tokens of each prompt, and of the answer with its end."""
        prompts, end = self.model.prompts, self._end
        asked = []
        for question in questions:
            shown = question.context[: shape.k] if shape.in_prompt and task.in_prompt else ()
            context = [task.passages[i] for i in shown]
            asked.append(prompts.prompt_for(question.asked, context))
        replies = [prompts.reply(question.answer) for question in questions]
        read = prompt_ids_of(self.tokenizer, prompts, asked)
        for prompt, answer in zip(read, token_ids_of(self.tokenizer, prompts, replies), strict=True):
            yield self._known(prompt), self._known(answer) + end

    @property
    def _end(self) -> int:
        return int(self.model.prompts.end_token and self.tokenizer.eos_token_id is not None)

    def _known(self, ids: Sequence[int]) -> int:
        """How many they are; raises `TokenOutOfVocabulary` if the model does not know them all."""
        check_known(self.tokenizer, ids, self.vocabulary)
        return len(ids)


@dataclass(frozen=True)
class DevSet:
    """One set of dev tasks: where it is, a hash of the tasks that are scored, and the numbers of those left out."""

    uri: str
    digest: str
    left_out: frozenset[int] = frozenset()

    def read(self) -> list[Task]:
        """The tasks that are scored."""
        return [task for number, task in enumerate(read_tasks(self.uri)) if number not in self.left_out]


def check_dev_tasks(uri: str, lengths: Lengths, shape: ShapeConfig, max_new_tokens: int) -> DevSet:
    """Look at all tasks of a dev set. Those that cannot be scored are left out, or fatal, as `shape.bad_tasks` says.

    Raises `CorpusError` for these, and if none is left.
    """
    scored, problems, count = list[bytes](), dict[int, CorpusError](), 0
    for number, task in enumerate(read_tasks(uri)):
        count += 1
        try:
            lengths.check_dev(task, f"task {task.id}", shape, max_new_tokens)
            scored.append(json_bytes(task.to_record(), sort_keys=False))
        except CorpusError as error:
            problems[number] = error
    texts = [str(error) for error in problems.values()]
    if problems and (shape.bad_tasks == "fail" or len(problems) == count):
        cure = "raise shape.max_passage_tokens or shape.max_tokens, or leave these tasks out with shape.bad_tasks=skip"
        raise CorpusError(
            f"{uri}: {len(problems)} of {counted(count, 'dev task')} cannot be scored: "
            f"{'; '.join(texts[:_SHOWN])}{' ...' if len(texts) > _SHOWN else ''}. {cure}",
            code="bad_dev_tasks",
            uri=uri,
            bad=len(problems),
            problems=[error.code for error in problems.values()],
        )
    for text in texts[:_SHOWN]:
        logger.warning("skipped: %s %s", uri, text)
    if problems:
        logger.warning("%d of %s of %s are skipped", len(problems), counted(count, "dev task"), uri)
    return DevSet(uri, pieces_digest(scored)[:SHORT], frozenset(problems))


class TaskKey(NamedTuple):
    """A record: the number of its file among all files of the run, and its number in the file."""

    file: int
    number: int


class TaskHead(NamedTuple):
    """What a plan needs of a record: its place in words, the task's id and a hash of its content, or its problem."""

    key: TaskKey
    place: str
    id: str
    content: str
    problem: str


def files_of(config: MetaTrainConfig) -> list[tuple[int, str]]:
    """The files of all sources in order, each with the number of its source; raises `CorpusError` if one is dev's."""
    files = [(number, file) for number, source in enumerate(config.tasks) for file in task_files(source.uri)]
    both = {file for _, file in files} & {file for uri in config.dev for file in task_files(uri)}
    if both:
        file = min(both)
        text = f"{file} is among the tasks and is dev, too: name the files of `tasks`, or keep dev in another directory"
        raise CorpusError(text, code="dev_among_tasks", file=file)
    return files


def scan(file: int, uri: str, lengths: Lengths, shape: ShapeConfig) -> Iterator[tuple[TaskHead, Task | None]]:
    """Head and task of every record of a file; a bad record has no task.

    A file that cannot be read is a bad record whose place is the file: Ray Data would lose the text of an error.
    """

    def check(task: Task, where: str) -> None:
        lengths.check(task, where, shape)

    number = 0
    try:
        for number, item in enumerate(scan_tasks(uri, check)):
            identifier, content = (item.task.id, _digest(item.task.to_record())) if item.task else ("", "")
            yield TaskHead(TaskKey(file, number), item.where, identifier, content, item.problem), item.task
    except CorpusError as error:
        yield TaskHead(TaskKey(file, number + 1), uri, "", "", str(error)), None


def _digest(content: object) -> str:
    # As in the checkpoints that there are: the keys of a task's record in the order in which it writes them.
    return json_digest(content, sort_keys=False)


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of each source and, with the settings (whose number of steps is known now), the order of all draws."""

    config: MetaTrainConfig
    sources: Sequence[Sequence[TaskKey]]
    digest: str

    @property
    def summary(self) -> list[dict[str, Any]]:
        """The sources with their numbers of tasks, for the notes of the MetaInit."""
        return [
            {"uri": source.uri, "weight": source.weight, "tasks": len(keys)}
            for source, keys in zip(self.config.tasks, self.sources, strict=True)
        ]

    def steps(self, first: int = 0, workers: Workers = Workers()) -> Iterator[list[tuple[int, TaskKey]]]:
        """This worker's draws of every step from `first` on: the position among all draws, and the task."""
        seed, optimizer = self.config.seed, self.config.optimizer
        sources = [
            SampleSource(len(keys), f"{seed}/{number}", source.weight)
            for number, (keys, source) in enumerate(zip(self.sources, self.config.tasks, strict=True))
        ]
        for draws in Sampler(sources, optimizer.batch_size).steps(first, optimizer.steps, workers):
            yield [(draw.position, self.sources[draw.source][draw.number]) for draw in draws]

    def pool_keys(self) -> list[TaskKey]:
        """The tasks whose first passages are drawn from as distractors, in order: up to 2048, chosen by the seed."""
        if not self.config.shape.distractor_probability:
            return []
        keys = sorted(key for keys in self.sources for key in keys)
        return sorted(random.Random(f"{self.config.seed}/pool").sample(keys, min(_POOL, len(keys))))

    def place(self, task: Task, position: int, pool: Sequence[Passage]) -> Task:
        """The task as the draw at `position` sees it."""
        return shape_task(task, self.config.shape, pool, self.config.seed, position)


def pool_of(tasks: Sequence[Task]) -> list[Passage]:
    """The distractors: the distinct first passages of the tasks that `pool_keys` names."""
    return list(dict.fromkeys(task.passages[0] for task in tasks))


def plan_tasks(config: MetaTrainConfig, files: Sequence[tuple[int, str]], heads: Sequence[TaskHead]) -> TaskPlan:
    """Bad tasks are counted and logged, or fatal; raises `CorpusError` for these, a bad file and an empty source."""
    heads = sorted(heads)
    problems = {head.place: head.problem for head in heads if head.problem}
    for _, uri in files:
        if uri in problems:
            raise CorpusError(problems[uri], code="file_unreadable", uri=uri)
    problems |= duplicates([(head.place, head.id) for head in heads if not head.problem])
    if problems and config.shape.bad_tasks == "fail":
        more = f" (and {len(problems) - 1} more; shape.bad_tasks=skip leaves them out)" if len(problems) > 1 else ""
        place, problem = next(iter(problems.items()))
        raise CorpusError(problem + more, code="bad_task", place=place, bad=len(problems))
    for problem in list(problems.values())[:_SHOWN]:
        logger.warning("skipped: %s", problem)
    if problems:
        logger.warning("%d of %d tasks are skipped", len(problems), len(heads))
    good = [head for head in heads if head.place not in problems]
    sources: list[list[TaskKey]] = [[] for _ in config.tasks]
    for head in good:
        sources[files[head.key.file][0]].append(head.key)
    for source, keys in zip(config.tasks, sources, strict=True):
        if not keys:
            raise CorpusError(f"{source.uri} holds no tasks", code="no_tasks", uri=source.uri)
    optimizer = config.optimizer.with_steps(len(good))
    if optimizer.epochs is not None:
        logger.info("%g epochs of %d tasks: %d steps", optimizer.epochs, len(good), optimizer.steps)
    config = config.model_copy(update={"optimizer": optimizer})
    return TaskPlan(config, sources, _digest([head.content for head in good]))


class TasksInMemory:
    """All tasks of a run in this process. Raises `CorpusError` as `plan_tasks` does."""

    def __init__(self, plan: TaskPlan, tasks: Mapping[TaskKey, Task]) -> None:
        self.plan, self._tasks = plan, tasks
        self._pool = pool_of([tasks[key] for key in plan.pool_keys()])

    @staticmethod
    def read(config: MetaTrainConfig) -> TasksInMemory:
        """From the files that the settings name."""
        files, lengths = files_of(config), Lengths.of(config.model)
        scanned = [item for number, (_, uri) in enumerate(files) for item in scan(number, uri, lengths, config.shape)]
        plan = plan_tasks(config, files, [head for head, _ in scanned])
        return TasksInMemory(plan, {head.key: task for head, task in scanned if task is not None})

    @staticmethod
    def of(config: MetaTrainConfig, sources: Sequence[Sequence[Task]]) -> TasksInMemory:
        """From tasks that were not read from files: those of each source."""
        tasks = {TaskKey(n, i): task for n, source in enumerate(sources) for i, task in enumerate(source)}
        heads = [
            TaskHead(key, f"task {key.number} of source {key.file}", t.id, _digest(t.to_record()), "")
            for key, t in tasks.items()
        ]
        files = [(number, f"source {number}") for number in range(len(sources))]
        return TasksInMemory(plan_tasks(config, files, heads), tasks)

    def steps(self, first: int = 0, workers: Workers = Workers()) -> Iterator[list[Task]]:
        """This worker's tasks of every step from `first` on, as their draws see them."""
        for draws in self.plan.steps(first, workers):
            yield [self.plan.place(self._tasks[key], position, self._pool) for position, key in draws]


def shape_task(task: Task, shape: ShapeConfig, pool: Sequence[Passage], seed: int, position: int) -> Task:
    """The task for the draw at `position`: fewer passages or questions, distractors from `pool`, another order, and
    perhaps none of the passages in the prompt.

    A function of the task, the settings, the seed and the position, so it does not matter where it is called.
    """
    rng = random.Random(f"{seed}/shape/{position}")
    passages = task.passages
    questions = [replace(q, context=q.context[: shape.k]) for q in task.questions]
    if shape.questions is not None and shape.questions < len(questions):
        questions = rng.sample(questions, shape.questions)
    if rng.random() < shape.distractor_probability:
        # Behind every question's own passages, where a retriever's worse hits would be.
        own = {passage.id for passage in passages}
        tried = rng.sample(pool, min(len(pool), shape.distractors + len(own))) if pool else []
        distractors = [passage for passage in tried if passage.id not in own][: shape.distractors]
        added = tuple(range(len(passages), len(passages) + len(distractors)))
        passages = (*passages, *distractors)
        questions = [replace(q, context=q.context + added) for q in questions]
    if shape.shuffled:
        questions = [replace(q, context=tuple(rng.sample(q.context, len(q.context)))) for q in questions]
    # Passages that no question rests on need no gradient.
    used = sorted({position for question in questions for position in question.context})
    number = {old: new for new, old in enumerate(used)}
    questions = [replace(q, context=tuple(number[i] for i in q.context)) for q in questions]
    # Drawn last, and only if it is open, so that what other settings draw stays as it was.
    in_prompt = task.in_prompt and (shape.in_prompt_probability == 1 or rng.random() < shape.in_prompt_probability)
    passages = tuple(passages[i] for i in used)
    return replace(task, passages=passages, questions=tuple(questions), in_prompt=in_prompt)
