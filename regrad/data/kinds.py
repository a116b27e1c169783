"""The kinds of questions. In a file of its own: settings, readers and prompts all need it."""

from __future__ import annotations

from typing import Literal, get_args

QuestionKind = Literal["open", "yes-no", "choice"]
"""How a question is answered: in one's own words, with one of a few allowed words, or with the letter of an option."""
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
