"""A question as the evaluation sees it, for tests."""

from __future__ import annotations

from dataclasses import dataclass

from regrad.evaluation.answer_parsing.answers import Kind


@dataclass(frozen=True)
class Posed:
    answers: tuple[str, ...]
    kind: Kind = "open"
    choices: tuple[str, ...] = ()
    id: str = "q"
    question: str = "Who?"
