"""Tasks of a question set: read, split, given their passages, and written with all that was left out, and why."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.data.question_sets import read_set
from regrad.data.questions import Question
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import TrainingError
from regrad.storage import Storage, directory_writer
from regrad.text import counted
from regrad.training.task_files.config import TasksConfig
from regrad.training.task_files.passages import TaskPassages

IN_CONVERSATION = "rests on what was said before, which a task does not hold"
TRAIN, DEV, CORPUS, LEFT_OUT, REPORT = "train.jsonl", "dev.jsonl", "corpus.jsonl", "left_out.jsonl", "report.json"

OVER_LIMIT = "over `limit` or `dev_limit`"

_BATCH = 1000
"""Questions that are searched at once, and kept as one part."""
_TELL_SECONDS = 5


@dataclass(frozen=True)
class KeptQuestion:
    """A question with the passages that were chosen for it: those of `Question` are the ones that its set gives it."""

    question: Question
    passages: tuple[Passage, ...]
    has_gold: bool


class TaskMaker:
    """Makes `config.output`; `parts` keeps what was retrieved until it is made, `say` hears how far it is."""

    def __init__(self, config: TasksConfig, parts: Storage, say: Callable[[str], None]) -> None:
        self._config, self._parts, self._say = config, parts, say
        self._left_out: list[dict[str, str]] = []
        self._told = time.monotonic()

    def make(self) -> dict[str, Any]:
        """Write train, dev, their passages, what was left out and a report, which is returned.

        Raises `EvaluationError` for a question set that cannot be read, `TrainingError` if it cannot be split or no
        task could be made of it; then, what was left out is written all the same.
        """
        config = self._config
        questions, unread = read_set(config.questions)
        self._say(f"{counted(len(questions), 'question')} read")
        shared = config.questions_per_task > 1
        with TaskPassages(config.passages, questions, config.seed, self._parts, shared) as passages:
            dev = held_out(questions, self._parts_of(questions, passages), config.dev_fraction, config.seed)
            sides = ([q for q in questions if q.id not in dev], [q for q in questions if q.id in dev])
            train_kept, dev_kept = (
                self._kept(side, limit, passages)
                for side, limit in zip(sides, (config.limit, config.dev_limit), strict=True)
            )
        made = {TRAIN: self._tasks(train_kept), DEV: self._tasks(dev_kept)}
        report = self._report(len(questions) + unread.total(), unread, {TRAIN: train_kept, DEV: dev_kept}, made)
        self._write(made, [kept for side in (train_kept, dev_kept) for kept in side], report)
        if not made[TRAIN]:
            often = next(iter(report["left_out"]), "there is no question")
            raise TrainingError(
                f"no task could be made of {config.questions.path}; the most frequent reason is '{often}': see "
                f"{config.output}/{LEFT_OUT}",
                code="no_tasks",
                reason=often,
            )
        return report

    def _parts_of(self, questions: Sequence[Question], passages: TaskPassages) -> dict[str, list[Hashable]]:
        """What each question may not share with one of the other side."""
        by = self._config.split_by
        if not self._config.dev_fraction or by == "question":
            return {question.id: [] for question in questions}
        found: dict[str, list[Hashable]] = {}
        for question in questions:
            titles = {passage.id: passage.title for passage in passages.gold(question)} if by == "article" else {}
            found[question.id] = [titles.get(name) or ("id", name) for name in question.passage_ids]
        return found

    def _kept(self, questions: Sequence[Question], limit: int | None, passages: TaskPassages) -> list[KeptQuestion]:
        """Those that have passages, up to the limit, in the order of the set."""
        drawn = list(questions)
        if limit is not None:
            drawn.sort(key=lambda question: draw_key(self._config.seed, "limit", question.id))
        kept: dict[str, KeptQuestion] = {}
        for start in range(0, len(drawn), _BATCH):
            some = drawn[start : start + _BATCH]
            for question, chosen in zip(some, passages.choose(some), strict=True):
                if question.turns:
                    self._leave_out(question, IN_CONVERSATION)
                elif chosen.reason:
                    self._leave_out(question, chosen.reason)
                elif limit is not None and len(kept) == limit:
                    self._leave_out(question, OVER_LIMIT)
                else:
                    kept[question.id] = KeptQuestion(question, chosen.passages, chosen.has_gold)
            self._tell(min(start + _BATCH, len(drawn)), len(drawn))
            if limit is not None and len(kept) == limit:
                for question in drawn[start + _BATCH :]:
                    self._leave_out(question, OVER_LIMIT)
                break
        return [kept[question.id] for question in questions if question.id in kept]

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._told >= _TELL_SECONDS:
            self._told = now
            self._say(f"{done:,} of {counted(total, 'question')} looked at")

    def _leave_out(self, question: Question, reason: str) -> None:
        self._left_out.append({"id": question.id, "reason": reason})

    def _tasks(self, kept: Iterable[KeptQuestion]) -> list[Task]:
        """One task a question, or one for several on the same passages, whatever their order."""
        full: list[list[KeptQuestion]] = []
        growing: dict[frozenset[str], list[KeptQuestion]] = {}
        for one in kept:
            key = frozenset(passage.id for passage in one.passages)
            group = growing.get(key)
            if group is None or len(group) == self._config.questions_per_task:
                group = growing[key] = []
                full.append(group)
            group.append(one)
        return [self._task(group) for group in full]

    def _task(self, group: Sequence[KeptQuestion]) -> Task:
        passages = {passage.id: passage for passage in group[0].passages}
        places = {name: number for number, name in enumerate(passages)}
        questions = tuple(_asked(one.question, tuple(places[p.id] for p in one.passages)) for one in group)
        name = f"{self._config.questions.label}/{group[0].question.id}"
        return Task(tuple(passages.values()), questions, name)

    def _report(
        self, read: int, unread: Counter[str], kept: dict[str, list[KeptQuestion]], made: dict[str, list[Task]]
    ) -> dict[str, Any]:
        reasons = unread + Counter(item["reason"] for item in self._left_out)
        named = [one for side in kept.values() for one in side if one.question.passage_ids]
        return {
            "questions": read,
            **{
                name: {"tasks": len(made[name]), "questions": len(kept[name]), "kinds": _kinds(kept[name])}
                for name in (TRAIN, DEV)
            },
            "passages": len({passage for tasks in made.values() for task in tasks for passage in task.passages}),
            "with_known_gold": len(named),
            "gold_among_passages": sum(one.has_gold for one in named),
            "left_out": dict(reasons.most_common()),
            "settings": self._config.model_dump(mode="json"),
        }

    def _write(self, made: dict[str, list[Task]], kept: Sequence[KeptQuestion], report: dict[str, Any]) -> None:
        passages = {passage.id: passage for one in kept for passage in one.passages}
        with directory_writer(self._config.output, REPORT) as folder:
            for name, tasks in made.items():
                if tasks:
                    with (folder / name).open("wb") as file:
                        file.writelines(encode_jsonl([task.to_record()]) for task in tasks)
            (folder / CORPUS).write_bytes(encode_passages(passages.values()))
            (folder / LEFT_OUT).write_bytes(encode_jsonl(self._left_out))
            (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _asked(question: Question, context: tuple[int, ...]) -> TaskQuestion:
    answer, *aliases = question.answers
    return TaskQuestion(question.question, answer, context, question.kind, question.choices, tuple(aliases))


def _kinds(kept: Iterable[KeptQuestion]) -> dict[str, int]:
    return dict(Counter(one.question.kind for one in kept).most_common())


def describe_report(report: dict[str, Any], output: str) -> str:
    """What was made, in one line."""
    made = [
        f"{name}: {counted(report[name]['tasks'], 'task')}, {counted(report[name]['questions'], 'question')}"
        for name in (TRAIN, DEV)
        if report[name]["tasks"]
    ]
    parts = [f"tasks at {output}", *made, f"{CORPUS}: {counted(report['passages'], 'passage')}"]
    if report["with_known_gold"]:
        share = report["gold_among_passages"] / report["with_known_gold"]
        parts.append(f"gold passages among those of {share:.1%} of {report['with_known_gold']:,} that name some")
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report["left_out"].items())
    left_out = f"left out {sum(report['left_out'].values()):,} of {counted(report['questions'], 'question')}"
    return "; ".join([*parts, left_out + (f" ({reasons})" if reasons else "")])


def draw_key(seed: int, purpose: str, name: str) -> str:
    """What to sort by for an order that depends on seed and id alone: a larger draw begins with a smaller one."""
    return sha256(f"{seed}|{purpose}|{name}".encode()).hexdigest()


def held_out(
    questions: Sequence[Question], parts: Mapping[str, Iterable[Hashable]], fraction: float, seed: int
) -> set[str]:
    """The ids of the dev questions: about `fraction` of them, never more.

    Questions that have one of their `parts` in common (by question id: articles or passages), or that are word for word
    the same, are on the same side. Raises `TrainingError` if that leaves nothing to hold out.
    """
    wanted = round(fraction * len(questions))
    if not wanted:
        return set()
    dev: set[str] = set()
    units = _units(questions, parts)
    for unit in sorted(units, key=lambda unit: draw_key(seed, "split", min(unit))):
        if len(dev) + len(unit) <= wanted:
            dev.update(unit)
    if not dev:
        smallest = min(map(len, units))
        raise TrainingError(
            f"{counted(wanted, 'question')} of {len(questions):,} should be kept for dev, and the smallest group that "
            f"shares articles or passages has {smallest:,}; raise dev_fraction, or set split_by to passage or question",
            code="cannot_split",
            wanted=wanted,
            smallest=smallest,
        )
    return dev


def _units(questions: Sequence[Question], parts: Mapping[str, Iterable[Hashable]]) -> list[list[str]]:
    """The ids of questions that hang together, in groups: a union-find over what they have in common."""
    above: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        above.setdefault(node, node)
        while above[node] != node:
            above[node] = above[above[node]]  # halves the way for whoever comes after
            node = above[node]
        return node

    for question in questions:
        words = " ".join(question.question.casefold().split())
        for part in (("words", words, question.choices), *(("part", part) for part in parts[question.id])):
            above[root(part)] = root(("question", question.id))
    units: dict[Hashable, list[str]] = defaultdict(list)
    for question in questions:
        units[root(("question", question.id))].append(question.id)
    return list(units.values())
