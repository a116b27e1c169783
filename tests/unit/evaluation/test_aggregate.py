"""From records to a table's numbers."""

from __future__ import annotations

import pytest

from regrad.errors import EvaluationError
from regrad.evaluation.records import Record
from regrad.evaluation.statistics import (
    bootstrap_interval,
    by_question,
    compare,
    compare_methods,
    summarise,
    wilson_interval,
)
from tests.tools.records import record
from tests.tools.refusals import refused


def _cell(method: str, right: str, seed: int = 0, set_: str = "people") -> list[Record]:
    """One record a letter: 1 right, 0 wrong, x unparsable."""
    return [
        record(
            set=set_,
            method=method,
            seed=seed,
            question_id=f"q{number}",
            em=float(letter == "1"),
            correct=letter == "1",
            parsed=letter != "x",
            milliseconds=float(number),
        )
        for number, letter in enumerate(right)
    ]


def test_a_cell_has_its_mean_its_interval_and_its_unparsable() -> None:
    found = summarise([*_cell("rag", "1101x"), *_cell("direct", "00x0x")], "correct")
    assert list(found) == [("people", "rag", "lab", 3, 0), ("people", "direct", "lab", 3, 0)]
    rag, direct = found.values()
    assert (rag.questions, rag.records, rag.mean, rag.unparsable) == (5, 5, pytest.approx(0.6), 1)
    assert rag.interval == wilson_interval(3, 5)
    assert (direct.mean, direct.unparsable, direct.interval[0]) == (0.0, 2, pytest.approx(0.0))


def test_seeds_are_averaged_by_question_and_do_not_count_as_questions() -> None:
    rows = [*_cell("rag", "1100", seed=1), *_cell("rag", "1010", seed=2)]
    (found,) = summarise(rows, "em", by=("set", "method")).values()
    assert (found.questions, found.records, found.mean) == (4, 8, 0.5)
    assert found.interval == bootstrap_interval([1.0, 0.5, 0.5, 0.0])


def test_equal_ids_of_two_sets_are_two_questions() -> None:
    rows = [*_cell("rag", "11"), *_cell("rag", "00", set_="places")]
    assert by_question(rows, "em") == {
        ("people", "q0"): 1.0,
        ("people", "q1"): 1.0,
        ("places", "q0"): 0.0,
        ("places", "q1"): 0.0,
    }
    (found,) = summarise(rows, "em", by=("method",)).values()
    assert (found.questions, found.mean) == (4, 0.5)


def test_costs_are_summarised_like_scores() -> None:
    (found,) = summarise(_cell("rag", "1100"), "milliseconds", by=("method",)).values()
    assert found.mean == 1.5
    assert 0.0 < found.interval[0] < 1.5 < found.interval[1] < 3.0


def test_methods_are_paired_by_question_whatever_their_order() -> None:
    rag, direct = _cell("rag", "1101101101"), _cell("direct", "0100100001")
    found = compare_methods([*rag, *direct[::-1], *_cell("same", "1101101101")], "em", "rag")
    alone = compare([row.em for row in direct], [row.em for row in rag])
    assert found["direct"].difference == pytest.approx(-0.4)
    assert (found["direct"].p_t, found["direct"].questions) == (alone.p_t, 10)
    assert found["direct"].holm_t == pytest.approx(min(1.0, 2 * alone.p_t))
    assert found["same"].p_t == 1.0


def test_a_label_parts_the_cells_of_one_method() -> None:
    rows = [*_cell("rag", "1101", seed=1), *_cell("rag", "0100", seed=2)]
    found = compare_methods(rows, "em", "rag 1", lambda row: f"{row.method} {row.seed}")
    assert found["rag 2"].difference == pytest.approx(-0.5)


def test_what_cannot_be_compared_is_a_clear_error() -> None:
    rag = _cell("rag", "1101")
    with refused(EvaluationError, "other_questions", problems={"missing": ["people/q3"]}):
        compare_methods([*rag, *_cell("direct", "110")], "em", "rag")
    with refused(EvaluationError, "no_reference", reference="prag"):
        compare_methods(rag, "em", "prag")
    with refused(EvaluationError, "unknown_name", name="raw"):
        summarise(rag, "raw")  # type: ignore[arg-type]
    with refused(EvaluationError, "unknown_name", name="raw"):
        summarise(rag, "em", by=("raw",))
