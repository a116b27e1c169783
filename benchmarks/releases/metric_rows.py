"""F1, exact match, precision and recall of 500 awkward answers."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from regrad.data.questions import Question
from regrad.evaluation.answer_parsing.answers import cut_answer
from regrad.evaluation.metrics import score
from releases.code import Release
from releases.rows import Row

_WORDS = (
    *("a", "A", "an", "the", "The", "yes", "no", "noanswer", "Yes.", "NO!", "not", "and", "of", "war", "peace"),
    *("Paris", "paris", "Zürich", "ZÜRICH", "naïve", "東京", "Tokyo", "İstanbul", "straße", "STRASSE", "ﬁsh", "fish"),
    *("1,234", "1234", "3.5", "№5", "(1990)", "...", "--", "'", "“quoted”", "O'Neil", "U.S.", "us", "a-b", "a b"),
    *("\t", "é", "e\u0301", "\u00a0"),
)


class Pair(NamedTuple):
    """What was said, and the accepted answers."""

    said: str
    answers: tuple[str, ...]


def awkward(count: int, seed: int = 0) -> list[Pair]:
    """Unicode, articles and punctuation alone, numbers, yes and no, nothing, several answers, several lines."""
    rng = random.Random(seed)

    def text(least: int) -> str:
        return rng.choice([" ", "  ", "\n", ", "]).join(rng.choices(_WORDS, k=rng.randint(least, 4)))

    def said(answers: Sequence[str]) -> str:
        near = rng.choice(answers)
        made = [text(0), near, near.upper(), f"the {near}.", f"{near} {text(1)}", f"{text(1)}\n{near}"]
        return rng.choice(made)

    all_answers = [tuple(text(1) for _ in range(rng.randint(1, 3))) for _ in range(count)]
    return [Pair(said(answers), answers) for answers in all_answers]


def regrad_rows(release: Release, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Against evaluate.py. It keeps the answer "a", which every official script drops; those pairs are a row apart."""

    def theirs(pair: Pair) -> tuple[float, ...]:
        metrics = {"em": 0.0, "f1": 0.0, "prec": 0.0, "recall": 0.0}
        em, f1, precision, recall = release.evaluate.update_answer(metrics, pair.said, list(pair.answers))
        return float(em), f1, precision, recall

    letter = [pair for pair in pairs if "a" in map(_bare, (pair.said, *pair.answers))]
    rest = [pair for pair in pairs if pair not in letter]
    yield _row("scores: ReGrad's evaluate.py", rest, theirs, _ours)
    yield _row(
        'the same where an answer is the letter "a"', letter, theirs, _ours, "the release keeps it, the scripts drop it"
    )


def prag_rows(release: Release, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Against utils.py, which cuts a prediction first."""

    def theirs(pair: Pair) -> tuple[float, ...]:
        found = release.utils.evaluate(pair.said, list(pair.answers))
        return tuple(float(found[name]) for name in ("em", "f1", "prec", "recall"))

    def ours(pair: Pair) -> tuple[float, ...]:
        return _ours(Pair(cut_answer(pair.said), pair.answers))

    yield _row("scores: PRAG's utils.py, predictions cut", pairs, theirs, ours)


def _ours(pair: Pair) -> tuple[float, ...]:
    found = score(Question("", "?", pair.answers), pair.said, "hotpotqa")
    return found.em, found.f1, found.precision, found.recall


def _bare(text: str) -> str:
    """In small letters, without punctuation."""
    return "".join(character for character in text.lower() if character not in string.punctuation)


def _row(
    name: str,
    pairs: Sequence[Pair],
    theirs: Callable[[Pair], tuple[float, ...]],
    ours: Callable[[Pair], tuple[float, ...]],
    note: str = "",
) -> Row:
    found = [max(abs(a - b) for a, b in zip(ours(pair), theirs(pair), strict=True)) for pair in pairs]
    other = sum(difference > 1e-12 for difference in found)
    text = f"{other} differ" + (f": {note}" if note and other else "")
    return Row(name, len(pairs), max(found, default=0.0), other / max(len(pairs), 1), "pairs that differ", note=text)
