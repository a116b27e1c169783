"""Question sets: one form for all, and readers for the published files."""

from regrad.evaluation.questions.question import Kind, Question, label, labelled
from regrad.evaluation.questions.reading import READERS, read_questions

__all__ = ["READERS", "Kind", "Question", "label", "labelled", "read_questions"]
