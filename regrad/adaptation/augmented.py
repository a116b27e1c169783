"""A passage with other wordings and questions about it: what PRAG trains a passage's adapter on.

One record a line: `{"id", "title", "text", "rewrites": [text], "pairs": [{"question", "answer", "full_answer"}]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from regrad.corpus import Passage, read_records
from regrad.errors import CorpusError

AUGMENTED = "augmented.jsonl"


@dataclass(frozen=True)
class Pair:
    """A question, its short answer and, where there is one, the answer as a sentence."""

    question: str
    answer: str
    full_answer: str = ""


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
        rewrites, pairs = record.get("rewrites", []), record.get("pairs", [])
        if not isinstance(rewrites, list) or not all(isinstance(item, str) and item.strip() for item in rewrites):
            raise CorpusError(f"{where}: 'rewrites' must be a list of texts")
        if not isinstance(pairs, list):
            raise CorpusError(f"{where}: 'pairs' must be a list, found {pairs!r:.60}")
        return Augmented(passage, tuple(rewrites), tuple(pair_of(item, where) for item in pairs))

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        pairs = [asdict(pair) for pair in self.pairs]
        return {**asdict(self.passage), "rewrites": list(self.rewrites), "pairs": pairs}


def pair_of(item: Any, where: str = "pair") -> Pair:
    """Check one question with its answer; raises `CorpusError` naming `where`."""
    values = [item.get(name) if isinstance(item, dict) else None for name in ("question", "answer")]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise CorpusError(f"{where}: a pair needs a 'question' and an 'answer', found {item!r:.80}")
    full = item.get("full_answer", "")
    return Pair(str(values[0]).strip(), str(values[1]).strip(), full.strip() if isinstance(full, str) else "")


def augmented_file(uri: str) -> str:
    """The file itself, or the one in the directory that `regrad augment` writes."""
    return uri if ".jsonl" in uri.rsplit("/", 1)[-1] else f"{uri.rstrip('/')}/{AUGMENTED}"


def read_augmented(uri: str) -> Iterator[Augmented]:
    """The passages of a file; raises `CorpusError` naming the first line that is none."""
    file = augmented_file(uri)
    for number, record in read_records(file):
        yield Augmented.from_record(record, f"{file} line {number}")


def encode_augmented(items: Iterable[Augmented]) -> bytes:
    """The passages as jsonl."""
    return "".join(json.dumps(item.to_record(), ensure_ascii=False) + "\n" for item in items).encode()
