"""The names that a field goes by: files that other tools wrote are read as they are, whatever their format.

BEIR has `_id`, Anserini and Pyserini `docid` and `contents`, FlashRAG `contents` and `golden_answers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ID = ("id", "_id", "docid")
CONTENTS = "contents"
TEXT = ("text", CONTENTS)
ANSWERS = ("answers", "golden_answers", "answer")
PASSAGE_IDS = ("passage_ids", "passage_id", "gold")

_SHOWN = 12


def named(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of the names under which the record has something, or at all; else the first of them."""
    there = [name for name in names if name in record]
    return next((name for name in there if not is_absent(record[name])), there[0] if there else names[0])


def answers_name(record: Mapping[str, Any]) -> str:
    """The field of a record's accepted answers; `answer` if it has none, for the error that says so."""
    found = named(record, ANSWERS)
    return found if found in record else "answer"


def is_absent(value: Any) -> bool:
    """Whether a value stands for nothing: null, NaN (which tables write for it), an empty text or list."""
    return value is None or value == "" or value == [] or (isinstance(value, float) and math.isnan(value))


def listed_names(record: Mapping[str, Any]) -> str:
    """The names of a record's fields, for an error about one that it lacks."""
    return ", ".join(list(map(str, record))[:_SHOWN]) or "no field"


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of `contents`: its first line is the title where that stands in quotes, as Pyserini has it."""
    first, newline, rest = contents.partition("\n")
    first = first.strip()
    if newline and len(first) > 1 and first[0] == first[-1] == '"':
        return first[1:-1].strip(), rest
    return "", contents
