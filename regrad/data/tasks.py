"""Meta-training tasks: a few passages, and questions that each name the passages they are answered from.

One task a record: `{"id": ..., "passages": [{id, title, text}], "questions": [{question, answer, context: [0, 2]}]}`;
`context` are positions in `passages`, best first (all of them if absent); `id` may be left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from regrad.data.passages import Passage
from regrad.errors import CorpusError


@dataclass(frozen=True)
class TaskQuestion:
    """A question, its answer, and the positions of its retrieved passages in the task."""

    question: str
    answer: str
    context: tuple[int, ...]


@dataclass(frozen=True)
class MetaTask:
    """Passages and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[TaskQuestion, ...]
    id: str = ""

    @staticmethod
    def from_record(record: Any, where: str = "record") -> MetaTask:
        """Check one decoded record; raises `CorpusError` naming `where`."""
        parts = [record.get(k) if isinstance(record, dict) else None for k in ("passages", "questions")]
        for name, part in zip(("passages", "questions"), parts, strict=True):
            if not isinstance(part, list) or not part:
                raise CorpusError(f"{where}: a task needs non-empty '{name}'")
        identifier = record.get("id", "")
        if not isinstance(identifier, str):
            raise CorpusError(f"{where}: 'id' must be a string, found {identifier!r:.60}")
        passages = tuple(Passage.from_record(item, f"{where} passage {i}") for i, item in enumerate(record["passages"]))
        questions = tuple(
            _question(item, len(passages), f"{where} question {i}") for i, item in enumerate(record["questions"])
        )
        return MetaTask(passages, questions, identifier)

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        questions = [{**asdict(question), "context": list(question.context)} for question in self.questions]
        return {"id": self.id, "passages": [asdict(passage) for passage in self.passages], "questions": questions}


def _question(item: Any, passages: int, where: str) -> TaskQuestion:
    if not isinstance(item, dict) or not all(isinstance(item.get(k), str) and item[k] for k in ("question", "answer")):
        raise CorpusError(f"{where}: 'question' and 'answer' must be non-empty strings")
    context = item.get("context")
    positions = range(passages) if context is None else context if isinstance(context, list) else ()
    if not positions or not all(type(i) is int and 0 <= i < passages for i in positions):
        raise CorpusError(f"{where}: 'context' must be positions from 0 to {passages - 1}, found {context!r:.60}")
    return TaskQuestion(item["question"], item["answer"], tuple(dict.fromkeys(positions)))
