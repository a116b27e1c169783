"""Records for tests: everything has a value, and a test names what matters to it."""

from __future__ import annotations

from typing import Any

from regrad.evaluation.records import Record

_VALUES: dict[str, Any] = {
    "set": "people",
    "method": "rag",
    "model": "lab",
    "k": 3,
    "seed": 0,
    "question_id": "q1",
    "question": "Where was Ada born?",
    "answers": ("Girton", "Girton, Cambridge"),
    "kind": "open",
    "group": "born",
    "raw": " Girton.\n",
    "prediction": "Girton.",
    "em": 1.0,
    "f1": 1.0,
    "precision": 1.0,
    "recall": 1.0,
    "correct": True,
    "parsed": True,
    "strict_correct": True,
    "strict_parsed": True,
    "release_correct": True,
    "release_parsed": True,
    "passage_ids": ("p1", "p2", "p3"),
    "passage_scores": (3.5, 1.25, 0.5),
    "prompt_tokens": 120,
    "completion_tokens": 4,
    "milliseconds": 12.5,
    "bytes_fetched": 0,
    "note": "",
}


def record(**values: Any) -> Record:
    """A record with these values."""
    return Record(**{**_VALUES, **values})
