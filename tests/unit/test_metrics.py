from __future__ import annotations

import pytest

from regrad.evaluation.metrics import exact_match, normalise


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
