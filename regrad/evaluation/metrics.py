"""Scores of answers, as in the SQuAD v1.1 and HotpotQA evaluation scripts, and accuracy for closed questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from regrad.data.questions import CLOSED_READERS, ClosedReader, Question, normalise
from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.answers import accepted_answers, parse_answer

Rules = Literal["squad", "hotpotqa"]
RULES: tuple[Rules, ...] = ("squad", "hotpotqa")

_NO_PARTIAL_CREDIT = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True)
class AnswerScore:
    """Scores of one answer, each from 0 to 1; those of a closed question are all 1 or all 0."""

    em: float
    f1: float
    precision: float
    recall: float
    correct: bool
    """Exact match, or the right label."""
    parsed: bool
    """Whether an answer could be read; for an open question, whether there is any text."""
    strict_correct: bool
    strict_parsed: bool
    release_correct: bool
    release_parsed: bool
    """The two by each reader of closed questions, whichever of them counts; of an open question the same twice."""


class _Overlap(NamedTuple):
    f1: float
    precision: float
    recall: float


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals any of the accepted answers after normalisation."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def f1(prediction: str, answers: Sequence[str], rules: Rules = "squad") -> float:
    """The best harmonic mean of word precision and recall with any accepted answer, from 0 to 1.

    If normalisation leaves nothing of both, it is 1 under "squad", as in SQuAD 2.0; `score`, like SQuAD v1.1 and
    "hotpotqa", gives 0.
    """
    said = normalise(prediction)
    if rules == "hotpotqa":
        return max(_credit(said, normalise(answer), rules).f1 for answer in answers)
    return max(1.0 if said == known == "" else _overlap(said, known).f1 for known in map(normalise, answers))


def score(question: Question, prediction: str, rules: Rules = "squad", reader: ClosedReader = "strict") -> AnswerScore:
    """Score a prediction (for a closed question, all that was generated); each number is the best over the answers.

    The rules differ for open questions where the prediction or the answer is "yes", "no" or "noanswer" and the two are
    not the same: F1, precision and recall are 0 under "hotpotqa" (as in PRAG's release), and the overlap of words under
    "squad". Under both, an answer of which normalisation leaves nothing can have EM 1 with F1 0. A closed question's
    answer is what `reader` reads.
    Raises `EvaluationError` for a question without answers or of an unknown kind, and for unknown rules.
    """
    if rules not in RULES:
        raise EvaluationError(
            f"unknown rules {rules!r:.60}; the rules are {', '.join(RULES)}", code="unknown_rules", rules=rules
        )
    if question.kind != "open":
        right_answers = accepted_answers(question)
        strict, release = (parse_answer(question, prediction, each) for each in CLOSED_READERS)
        found = release if reader == "release" else strict
        right = found in right_answers
        value = float(right)
        return AnswerScore(
            *(value, value, value, value, right, found is not None),
            strict_correct=strict in right_answers,
            strict_parsed=strict is not None,
            release_correct=release in right_answers,
            release_parsed=release is not None,
        )
    if not question.answers:
        raise EvaluationError("a question without accepted answers cannot be scored", code="no_answer", id=question.id)
    said = normalise(prediction)
    accepted = [normalise(answer) for answer in question.answers]
    overlaps = [_credit(said, known, rules) for known in accepted]
    correct = said in accepted
    best = _Overlap(*map(max, zip(*overlaps, strict=True)))
    both = correct, bool(prediction.strip())
    return AnswerScore(float(correct), best.f1, best.precision, best.recall, *both, *both, *both)


def _credit(said: str, known: str, rules: Rules) -> _Overlap:
    """What two normalised texts are worth under these rules."""
    if rules == "hotpotqa" and said != known and not _NO_PARTIAL_CREDIT.isdisjoint((said, known)):
        return _Overlap(0.0, 0.0, 0.0)
    return _overlap(said, known)


def _overlap(said: str, known: str) -> _Overlap:
    """The overlap of the words of two normalised texts."""
    predicted, expected = said.split(), known.split()
    common = (Counter(predicted) & Counter(expected)).total()
    if not common:
        return _Overlap(0.0, 0.0, 0.0)
    both = len(predicted) + len(expected)
    return _Overlap(2 * common / both, common / len(predicted), common / len(expected))
