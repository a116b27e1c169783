"""A question as the evaluation sees it, for tests."""

from __future__ import annotations

from dataclasses import dataclass

from regrad.data.kinds import QuestionKind


@dataclass(frozen=True)
class Posed:
    answers: tuple[str, ...]
    kind: QuestionKind = "open"
    choices: tuple[str, ...] = ()
    id: str = "q"
    question: str = "Who?"
