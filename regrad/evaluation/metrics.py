"""Scores of answers: those of the SQuAD v1.1 and HotpotQA evaluation scripts, and accuracy for closed questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.answers import accepted_answers, parse_answer
from regrad.evaluation.answer_parsing.statements import normalise

Rules = Literal["squad", "hotpotqa"]
RULES: tuple[Rules, ...] = ("squad", "hotpotqa")

_NO_PARTIAL_CREDIT = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True)
class Score:
    """Scores of one answer, each from 0 to 1; those of a closed question are all 1 or all 0."""

    em: float
    f1: float
    precision: float
    recall: float
    correct: bool
    """Exact match, or the right label."""
    parsed: bool
    """Whether an answer could be read; of an open question, whether there is any text."""


class _Overlap(NamedTuple):
    f1: float
    precision: float
    recall: float


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals any of the accepted answers after normalisation."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def f1(prediction: str, answers: Sequence[str], rules: Rules = "squad") -> float:
    """The best harmonic mean of word precision and recall with any accepted answer, from 0 to 1.

    By "squad" it is 1 if nothing is left of both after normalisation, as in SQuAD 2.0; `score`, like SQuAD v1.1 and
    "hotpotqa", says 0.
    """
    said = normalise(prediction)
    if rules == "hotpotqa":
        return max(_hotpot(said, normalise(answer)).f1 for answer in answers)
    return max(1.0 if said == known == "" else _overlap(said, known).f1 for known in map(normalise, answers))


def score(question: Question, prediction: str, rules: Rules = "squad") -> Score:
    """Score a prediction (of a closed question: or all that was generated); each number is the best over the answers.

    The rules differ for open questions where one of prediction and answer is "yes", "no" or "noanswer" and the other
    is not the same: F1, precision and recall are 0 under "hotpotqa" (so also in PRAG's release), and the overlap of
    words, as ever, under "squad". Under both, an answer of which normalisation leaves nothing can have EM 1 with F1 0.
    Raises `EvaluationError` for a question without answers or of an unknown kind, and for unknown rules.
    """
    if rules not in RULES:
        raise EvaluationError(f"unknown rules {rules!r:.60}; the rules are {', '.join(RULES)}")
    if question.kind != "open":
        return _score_closed(question, prediction)
    if not question.answers:
        raise EvaluationError("a question without accepted answers cannot be scored")
    return _score_open(prediction, question.answers, rules)


def _score_closed(question: Question, prediction: str) -> Score:
    accepted = accepted_answers(question)
    found = parse_answer(question, prediction)
    value = float(found in accepted)
    return Score(value, value, value, value, found in accepted, found is not None)


def _score_open(prediction: str, answers: Sequence[str], rules: Rules) -> Score:
    said, accepted = normalise(prediction), [normalise(answer) for answer in answers]
    overlaps = [_hotpot(said, known) if rules == "hotpotqa" else _overlap(said, known) for known in accepted]
    correct = said in accepted
    best = _Overlap(*map(max, zip(*overlaps, strict=True)))
    return Score(float(correct), best.f1, best.precision, best.recall, correct, bool(prediction.strip()))


def _hotpot(said: str, known: str) -> _Overlap:
    """Of two normalised texts."""
    if said != known and not _NO_PARTIAL_CREDIT.isdisjoint((said, known)):
        return _Overlap(0.0, 0.0, 0.0)
    return _overlap(said, known)


def _overlap(said: str, known: str) -> _Overlap:
    """Of the words of two normalised texts."""
    predicted, expected = said.split(), known.split()
    common = (Counter(predicted) & Counter(expected)).total()
    if not common:
        return _Overlap(0.0, 0.0, 0.0)
    both = len(predicted) + len(expected)
    return _Overlap(2 * common / both, common / len(predicted), common / len(expected))
