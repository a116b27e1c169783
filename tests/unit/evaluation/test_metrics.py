from __future__ import annotations

import pytest

from regrad.evaluation.answer_parsing.statements import normalise
from regrad.evaluation.metrics import exact_match, f1


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
