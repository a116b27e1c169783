"""Questions of which only what a test is about is said."""

from __future__ import annotations

from regrad.data.questions import Question, QuestionKind


def posed(
    answers: tuple[str, ...],
    kind: QuestionKind = "open",
    choices: tuple[str, ...] = (),
    id: str = "q",
    question: str = "Who?",
) -> Question:
    """A question with these answers."""
    return Question(id, question, answers, kind, choices)
