"""Normalisation, exact match and F1; and `score` against the published scripts, on strings made to be awkward."""

from __future__ import annotations

import random
import string
from collections import Counter
from typing import get_args

import pytest

from regrad.data.questions import ClosedReader, Question, normalise
from regrad.errors import EvaluationError
from regrad.evaluation.metrics import RULES, Rules, exact_match, f1, score
from tests.tools.official_scores import OFFICIAL, official_exact_match
from tests.tools.questions import posed
from tests.tools.refusals import refused


def test_normalisation_follows_squad() -> None:
    assert normalise(" The  Eiffel-Tower! ") == "eiffeltower"
    assert normalise("An apple, a day") == "apple day"


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Paris.", ["paris"], True),
        ("the Paris", ["London", "Paris"], True),
        ("Pari", ["Paris"], False),
        ("", ["x"], False),
    ],
)
def test_exact_match_over_aliases(prediction: str, answers: list[str], expected: bool) -> None:
    assert exact_match(prediction, answers) is expected


def test_f1_is_the_best_overlap_of_words_with_any_answer() -> None:
    assert f1("the red house", ["red house"]) == 1.0
    assert f1("red car", ["red house"]) == pytest.approx(0.5)
    assert f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert f1("blue", ["red", "blue boat"]) == pytest.approx(2 / 3)
    assert f1("", ["red"]) == 0.0
    assert f1("the", [""]) == 1.0


def test_hotpotqas_f1_has_no_partial_credit_for_yes_and_no_and_none_for_nothing() -> None:
    assert f1("no way", ["no"]) == pytest.approx(2 / 3) and f1("no way", ["no"], "hotpotqa") == 0
    assert f1("the", [""], "hotpotqa") == 0
    assert f1("No.", ["yes", "no"], "hotpotqa") == 1


_WORDS = [
    *(
        "a",
        "an",
        "the",
        "The",
        "A",
        "aN",
        "athe",
        "the-a",
        "a.",
        "l'a",
        "theatre",
        "Anna",
        "an\u0301",
        "a_b",
        "U.S.A.",
        "1,000",
    ),
    *("yes", "Yes!", "no", "NO.", "no-answer", "noanswer", "No answer", "n/o", "y es", "yes yes", "the yes"),
    *(
        "İstanbul",
        "STRASSE",
        "straße",
        "é",
        "e\u0301",
        "Ærø",
        "東京",
        "“quoted”",
        "—",
        "…",
        "’s",
        "ﬁ",
        "Σας",
        "🙂",
        "٣",
    ),
    *(
        "\t",
        "\n",
        "\u00a0",
        "\u2003",
        "\u200b",
        "\x1c",
        "\ufeff",
        "",
        "  ",
        ".",
        ",",
        "!?",
        "_",
        "$5",
        "``",
        "''",
        "\\",
    ),
]
_PAIRS = 1000


def _text(random_: random.Random) -> str:
    length = random_.choices([0, 1, 2, 3, 6], [1, 4, 4, 4, 2])[0]
    parts = [random_.choice(_WORDS) for _ in range(length)]
    if random_.random() < 0.2:
        parts.append("".join(random_.choice(string.punctuation + " aAtThHeE") for _ in range(6)))
    return random_.choice([" ", " ", "  ", "", "-"]).join(parts)


def _pairs() -> list[tuple[str, str]]:
    """Some predictions are the answer again, shuffled or in another dress."""
    random_, pairs = random.Random(20160616), []
    for _ in range(_PAIRS):
        answer = _text(random_)
        words = answer.split(" ")
        random_.shuffle(words)
        near = [answer.upper(), f"The {answer}.", " ".join(words), f"{answer} {_text(random_)}"]
        pairs.append((random_.choice(near) if random_.random() < 0.5 else _text(random_), answer))
    return pairs


@pytest.mark.parametrize("rules", RULES)
def test_scores_are_those_of_the_published_scripts(rules: Rules) -> None:
    seen: Counter[str] = Counter()
    for prediction, answer in _pairs():
        found = score(posed((answer,)), prediction, rules)
        expected = OFFICIAL[rules](prediction, answer)
        assert (found.f1, found.precision, found.recall) == pytest.approx(expected), (prediction, answer)
        assert found.correct is official_exact_match(prediction, answer), (prediction, answer)
        assert found.em == float(found.correct)
        seen.update(right=found.correct, partly=0 < found.f1 < 1, wrong=not found.correct, zero=found.f1 == 0)
        seen.update(special=OFFICIAL["squad"](prediction, answer) != OFFICIAL["hotpotqa"](prediction, answer))
    assert min(seen.values()) > 10, f"the pairs must try every way out: {seen}"


@pytest.mark.parametrize("rules", RULES)
def test_each_metric_is_the_best_over_the_aliases(rules: Rules) -> None:
    random_ = random.Random(1)
    for _ in range(300):
        prediction, aliases = _text(random_), tuple(_text(random_) for _ in range(random_.randint(1, 4)))
        found = score(posed(aliases), prediction, rules)
        best = tuple(map(max, zip(*(OFFICIAL[rules](prediction, alias) for alias in aliases), strict=True)))
        assert (found.f1, found.precision, found.recall) == pytest.approx(best)
        assert found.correct is any(official_exact_match(prediction, alias) for alias in aliases)


def test_yes_in_a_longer_answer_counts_for_squad_only() -> None:
    assert score(posed(("yes",)), "yes it is", "squad").f1 == pytest.approx(0.5)
    assert score(posed(("yes",)), "yes it is", "hotpotqa").f1 == 0.0
    assert score(posed(("no way out",)), "No.", "hotpotqa").recall == 0.0
    assert score(posed(("yes", "yes it is")), "Yes it is!", "hotpotqa").f1 == 1.0
    assert score(posed(("no",)), "the No!", "hotpotqa").f1 == 1.0


def test_nothing_left_of_both_is_a_match_without_words_in_common() -> None:
    found = score(posed(("The",)), "a.")
    assert (found.em, found.f1, found.precision, found.recall, found.parsed) == (1.0, 0.0, 0.0, 0.0, True)
    assert not score(posed(("Paris",)), " \n").parsed


def test_a_closed_question_is_right_or_wrong_in_every_number() -> None:
    question = posed(("B",), "choice", ("Girton", "Ely", "Cambridge"))
    right, wrong, unread = (score(question, text) for text in ("(b) Ely", "C", "Girton or Ely"))
    assert (right.em, right.f1, right.precision, right.recall, right.correct, right.parsed) == (1, 1, 1, 1, True, True)
    assert (wrong.em, wrong.f1, wrong.correct, wrong.parsed) == (0, 0, False, True)
    assert (unread.em, unread.correct, unread.parsed) == (0, False, False)
    assert score(posed(("No",), "yes-no"), "no.").correct
    assert not score(posed(("maybe",), "yes-no", ("yes", "no", "maybe")), "No").correct


@pytest.mark.parametrize(
    ("question", "code", "fields"),
    [
        (posed(()), "no_answer", {}),
        (posed((), "yes-no"), "answer_not_allowed", {"allowed": ["yes", "no"], "found": []}),
        (posed(("maybe",), "yes-no"), "answer_not_allowed", {"allowed": ["yes", "no"], "found": ["maybe"]}),
        (posed(("D",), "choice", ("x", "y", "z")), "answer_not_allowed", {"allowed": ["A", "B", "C"], "found": ["D"]}),
        (posed(("Ely",), "choice", ("Girton", "Ely")), "answer_not_allowed", {"found": ["Ely"]}),
        (posed(("A",), "choice", ()), "bad_options", {"options": 0}),
        (posed(("A",), "choice", ("x",) * 27), "bad_options", {"options": 27}),
        (posed(("yes",), "yes-no", ("yes", "Yes")), "too_few_words", {"words": ["yes", "Yes"]}),
        (posed(("x",), "essay"), "unknown_kind", {"found": "essay"}),  # type: ignore[arg-type]
    ],
)
def test_a_question_that_cannot_be_scored_is_an_error(question: Question, code: str, fields: dict[str, object]) -> None:
    with refused(EvaluationError, code, **fields):
        score(question, "yes")


def test_unknown_rules_are_an_error() -> None:
    assert get_args(Rules) == RULES
    with refused(EvaluationError, "unknown_rules", rules="bleu"):
        score(posed(("x",)), "x", "bleu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reader", "em", "correct", "parsed"), [("strict", 0.0, False, False), ("release", 1.0, True, True)]
)
def test_a_closed_answer_has_the_score_of_each_reader_and_counts_by_the_one_asked_for(
    reader: ClosedReader, em: float, correct: bool, parsed: bool
) -> None:
    found = score(Question("q", "Is it?", ("no",), kind="yes-no"), "There is no evidence", reader=reader)
    assert (found.em, found.correct, found.parsed) == (em, correct, parsed)
    assert (found.strict_correct, found.strict_parsed) == (False, False)
    assert (found.release_correct, found.release_parsed) == (True, True)


def test_an_open_answer_has_the_same_score_by_each_reader() -> None:
    for said in ("here", "there", ""):
        found = score(Question("q", "Where?", ("here",)), said)
        assert found.strict_correct == found.release_correct == found.correct == (said == "here")
        assert found.strict_parsed == found.release_parsed == found.parsed == bool(said)
