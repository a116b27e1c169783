"""Passages with rewrites and questions: the record, its files, and reading what other tools wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regrad.data.closed_questions import closed
from regrad.data.field_names import is_absent
from regrad.data.files import JSONL, endings_of, file_format, files_with, read_whole
from regrad.data.jsonl import as_object, decode, encode_jsonl, read_jsonl
from regrad.data.passages import Passage, passage_id
from regrad.data.questions import Fields, Question, QuestionKind, labelled
from regrad.data.tasks import Task
from regrad.errors import CorpusError

AUGMENTED = "augmented.jsonl"


@dataclass(frozen=True)
class Pair:
    """A question, its short answer and, where there is one, the answer as a sentence.

    Of a closed question, kind, choices and answer are as in `regrad.data.tasks.TaskQuestion`. It is no `Question`
    (`asked` gives that), as it is learnt rather than asked: it has one answer, and that in two forms.
    """

    question: str
    answer: str
    full_answer: str = ""
    kind: QuestionKind = "open"
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> Question:
        """What writes the prompt."""
        return Question("", self.question, (self.answer,), self.kind, self.choices)

    def to_record(self) -> dict[str, Any]:
        """The inverse of `pair_of`."""
        said = {"question": self.question, "answer": self.answer, "full_answer": self.full_answer}
        if self.kind == "open":
            return said
        text = dict(labelled(self.choices)).get(self.answer, self.answer)
        return {**said, "answer": text, "kind": self.kind, "choices": list(self.choices)}


@dataclass(frozen=True)
class Augmented:
    """A passage, the same in other words, and questions with answers."""

    passage: Passage
    rewrites: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    @staticmethod
    def from_record(record: Any, where: str = "record") -> Augmented:
        """Check one decoded record; raises `CorpusError` naming `where`."""
        passage = Passage.from_record(record, where)
        rewrites, pairs = ([] if is_absent(record.get(name)) else record[name] for name in ("rewrites", "pairs"))
        if not isinstance(rewrites, list) or not all(isinstance(item, str) and item.strip() for item in rewrites):
            text = f"{where}: 'rewrites' must be a list of texts"
            raise CorpusError(text, code="wrong_field", where=where, field="rewrites")
        if not isinstance(pairs, list):
            text = f"{where}: 'pairs' must be a list, found {pairs!r:.60}"
            raise CorpusError(text, code="wrong_field", where=where, field="pairs")
        return Augmented(passage, tuple(rewrites), tuple(pair_of(item, where) for item in pairs))

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        pairs = [pair.to_record() for pair in self.pairs]
        return {**asdict(self.passage), "rewrites": list(self.rewrites), "pairs": pairs}


def pair_of(item: Any, where: str = "pair") -> Pair:
    """Check one question with its answer; raises `CorpusError` naming `where`."""
    record = Fields(where, as_object(item, where), raises=CorpusError)
    question = record.text("question")
    kind, choices, answers = closed(record, "answer")
    full = record.fields.get("full_answer")
    return Pair(question, answers[0], full.strip() if isinstance(full, str) else "", kind, choices)


def parse_augmented(line: bytes, problem: str = "", where: str = "record") -> Augmented:
    """The passage of one JSON object; raises `CorpusError` naming `where` and what is wrong, or the known problem."""
    return Augmented.from_record(decode(line, where, problem), where)


def augmented_file(uri: str) -> str:
    """The file itself, or the one in the directory that `regrad augment` writes."""
    return uri if file_format(uri) == JSONL else f"{uri.rstrip('/')}/{AUGMENTED}"


def read_augmented(uri: str) -> Iterator[Augmented]:
    """The passages of a file; raises `CorpusError` naming the first bad line."""
    try:
        for where, record in read_jsonl(augmented_file(uri)):
            yield Augmented.from_record(record, where)
    except CorpusError as error:
        if error.code != f"{CorpusError.area}.not_found":
            raise
        text = f"{augmented_file(uri)} does not exist; `regrad augment` makes it of a corpus"
        raise CorpusError(text, code="not_found", uri=augmented_file(uri)) from error


def encode_augmented(items: Iterable[Augmented]) -> bytes:
    """The passages as jsonl."""
    return encode_jsonl(item.to_record() for item in items)


_MOST_BYTES = 2 << 30
_REWRITE, _PAIRS = "_rewrite", "_qa"


def read_ready(uri: str) -> Iterator[tuple[str, Augmented | CorpusError]]:
    """Every passage of a file, or of all .json and .jsonl files below a directory; a bad one comes as its error.

    Both may be compressed.

    A record with `augment` is one of PRAG's `data_aug`, a record with `pairs` one that regrad wrote. In `data_aug` a
    passage is under every question that retrieved it; it comes once. Raises `CorpusError` if a directory has no such
    file, one is not JSON, or a record is neither.
    """
    seen: set[str] = set()
    for where, record in _records(uri):
        if isinstance(record.get("augment"), list):
            yield from _unseen(record["augment"], where, seen)
        elif "pairs" in record:
            yield where, _checked(Augmented.from_record, record, where)
        else:
            text = f"{where}: an object with 'augment', a list, or with 'pairs' is expected"
            raise CorpusError(text, code="unknown_record", where=where)


def _unseen(items: Sequence[Any], where: str, seen: set[str]) -> Iterator[tuple[str, Augmented | CorpusError]]:
    """Those of a question's passages that no earlier question has retrieved."""
    for number, item in enumerate(items, start=1):
        place = f"{where} augment {number}"
        found = _checked(_augmented, item, place)
        if isinstance(found, Augmented):
            if found.passage.id in seen:
                continue
            seen.add(found.passage.id)
        yield place, found


def _checked(read: Callable[[Any, str], Augmented], item: Any, where: str) -> Augmented | CorpusError:
    try:
        return read(item, where)
    except CorpusError as error:
        return error


def from_tasks(tasks: Iterable[Task], most: int) -> Iterator[Augmented]:
    """Every passage with at most `most` of its own questions, those whose context begins with it, and no rewrites.

    Passages without a question are left out.
    """
    found: dict[str, tuple[Passage, dict[str, Pair]]] = {}
    for task in tasks:
        for question in task.questions:
            passage = task.passages[question.context[0]]
            _, pairs = found.setdefault(passage.id, (passage, {}))
            pair = Pair(question.question, question.answer, "", question.kind, question.choices)
            pairs.setdefault(question.question, pair)
    for passage, pairs in found.values():
        yield Augmented(passage, (), tuple(pairs.values())[:most])


def _records(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every record of the files: lines of .jsonl, items of the list that a .json holds."""
    for file in files_with(uri, (*endings_of(JSONL), ".json"), "of augmented passages"):
        yield from read_jsonl(file.uri) if file_format(file.uri) == JSONL else _items(file.uri)


def _items(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = json.loads(read_whole(uri, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{uri} is not JSON: {error}", code="not_json", where=uri) from error
    if not isinstance(values, list):
        text = f"{uri}: a list of records is expected, found {type(values).__name__}"
        raise CorpusError(text, code="no_records", where=uri)
    for number, value in enumerate(values, start=1):
        where = f"{uri} record {number}"
        yield where, as_object(value, where)


def _augmented(item: Any, where: str) -> Augmented:
    if not isinstance(item, dict) or not isinstance(item.get("passage"), str) or not item["passage"].strip():
        text = f"{where}: a non-empty 'passage' is expected"
        raise CorpusError(text, code="wrong_field", where=where, field="passage")
    text = item["passage"]
    passage = Passage.from_record({"id": passage_id(text), "title": "", "text": text}, where)
    rewrites = [value.strip() for name, value in item.items() if name.endswith(_REWRITE) and isinstance(value, str)]
    pairs: Any = next((value for name, value in item.items() if name.endswith(_PAIRS)), [])
    if not isinstance(pairs, list) or not pairs:
        text = f"{where}: no '<writer>{_PAIRS}' list"
        raise CorpusError(text, code="wrong_field", where=where, field=f"<writer>{_PAIRS}")
    return Augmented(passage, tuple(text for text in rewrites if text), tuple(pair_of(pair, where) for pair in pairs))
