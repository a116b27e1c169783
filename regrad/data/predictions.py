"""A user's predictions: jsonl of {id, prediction}, or one JSON mapping of ids to predictions (SQuAD, HotpotQA).

And whether what was answered is what was asked: ids that are missing, unknown or double.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from regrad.data.jsonl import as_found, parse_jsonl
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.storage import Storage
from regrad.text import listed

_MOST_BYTES = 256 * 1024 * 1024
_MOST_CHARACTERS = 100_000
"""Of one prediction."""
_SHOWN = 5
_SHOWN_CHARACTERS = 60

_SHAPES = (
    'lines of {"id": ..., "prediction": ...}, one mapping of ids to predictions, or such a mapping under "answer" '
    "(HotpotQA)"
)

_Entry = tuple[Any, Any]
"""An id and a prediction, not yet checked."""


def read_predictions(path: str, questions: Collection[Question]) -> dict[str, str]:
    """Predictions by question id, in the questions' order.

    Raises `EvaluationError` listing everything that does not match the questions: ids that are missing, unknown or
    repeated, ids and predictions that are not strings or too long; and `StorageError` if the file cannot be read.
    """
    storage, name = place_of(path)
    data = storage.read(name, 0, _MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise EvaluationError(
            f"{path} is larger than {_MOST_BYTES} bytes: it is not a prediction file", code="too_large", uri=path
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8: {error}", code="not_utf8", uri=path) from error
    entries = _entries(text, path)
    known = [entry for entry in entries if not _fault(*entry)]
    faults = [f"{str(name)[:60]} ({fault})" for name, value in entries if (fault := _fault(name, value))]
    named = [name for name, _ in entries if isinstance(name, str)]
    problems = [*mismatch("unusable", faults), *mismatches(named, (question.id for question in questions))]
    refuse(f"{path} does not match the {len(questions)} questions", problems)
    predictions: dict[str, str] = dict(known)
    return {question.id: predictions[question.id] for question in questions}


def place_of(path: str) -> tuple[Storage, str]:
    """A file's directory and its name there, for a path or a URI."""
    folder, _, name = path.rpartition("/")
    return Storage(folder or ("/." if path.startswith("/") else ".")), name


class _Object(dict[str, Any]):
    """A JSON object that keeps all of its pairs: a file may have a key twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _entries(text: str, path: str) -> list[_Entry]:
    """(id, prediction) of a file in any of the shapes.

    A single line of jsonl is also one JSON object: what tells them apart is that it has an id and a prediction.
    """
    if not text.strip():
        raise EvaluationError(f"{path} is empty; expected {_SHAPES}", code="empty", uri=path)
    if _starts_with_entry(text):
        return list(_lines(text, path))
    try:
        whole = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{path} is not JSON: {error}; expected {_SHAPES}", code="not_json", where=path
        ) from error
    if _is_entry(whole):
        return [(whole["id"], whole["prediction"])]
    if isinstance(whole, _Object):
        answers = whole.get("answer")
        return list(answers.pairs if isinstance(answers, _Object) else whole.pairs)
    found = type(whole).__name__
    raise EvaluationError(
        f"{path} holds {found} where an object was expected: {_SHAPES}", code="no_object", where=path, found=found
    )


def _lines(content: str, path: str) -> Iterable[_Entry]:
    for where, entry in parse_jsonl(content, path, EvaluationError):
        if not _is_entry(entry):
            text = f"{where}: expected an object with id and prediction, found {as_found(entry)}"
            raise EvaluationError(text, code="no_prediction", where=where)
        yield entry["id"], entry["prediction"]


def _starts_with_entry(text: str) -> bool:
    """Whether the first line is an entry: then every line should be one."""
    try:
        return _is_entry(json.loads(text.lstrip().partition("\n")[0]))
    except (ValueError, RecursionError):
        return False


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and "id" in value and "prediction" in value


def _fault(name: Any, prediction: Any) -> str:
    for what, value in (("id", name), ("prediction", prediction)):
        if not isinstance(value, str):
            return f"its {what} must be a string, found {as_found(value)}"
        if len(value) > _MOST_CHARACTERS:
            return f"its {what} is longer than {_MOST_CHARACTERS} characters"
        if not value.isascii() and value.encode(errors="replace").decode() != value:
            return f"its {what} is not valid Unicode"
    return ""


class Mismatch(NamedTuple):
    """What is wrong with some ids or other short texts; written such as "7 missing: 'a', 'b' and 5 more"."""

    label: str
    items: list[str]

    def __str__(self) -> str:
        cut = [item if len(item) <= _SHOWN_CHARACTERS else item[:_SHOWN_CHARACTERS] + "..." for item in self.items]
        return f"{len(self.items)} {self.label}: {listed(list(map(repr, cut)), _SHOWN)}"


def mismatch(label: str, items: Collection[str]) -> list[Mismatch]:
    """One mismatch, or none if there is no item."""
    return [Mismatch(label, list(items))] if items else []


def mismatches(found: Iterable[str], expected: Iterable[str]) -> list[Mismatch]:
    """The ids that are expected and not found, found and not expected, or found twice."""
    counts, wanted = Counter(found), set(expected)
    return [
        *mismatch("missing", sorted(wanted - counts.keys())),
        *mismatch("unknown", sorted(counts.keys() - wanted)),
        *mismatch("more than once", sorted(name for name, count in counts.items() if count > 1)),
    ]


def refuse(what: str, problems: Collection[Mismatch], code: str = "ids_do_not_match") -> None:
    """Raise `EvaluationError` with all the problems, if there is one; its field `problems` has the items by label."""
    if problems:
        items = {found.label: found.items for found in problems}
        raise EvaluationError(f"{what}: {'; '.join(map(str, problems))}", code=code, problems=items)
