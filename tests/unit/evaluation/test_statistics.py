"""Intervals, paired tests and Holm's correction against published numbers, scipy and simulation; and tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regrad.errors import EvaluationError
from regrad.evaluation.records import Record
from regrad.evaluation.statistics import (
    bootstrap_interval,
    by_question,
    compare,
    compare_all,
    compare_methods,
    corrected,
    holm,
    mean_interval,
    summarise,
    wilson_interval,
)
from tests.tools.records import record
from tests.tools.refusals import refused


def _scores(seed: int, questions: int, shares: tuple[float, ...]) -> list[list[float]]:
    """Right or wrong by question for methods of these shares."""
    drawn = np.random.default_rng(seed).random((len(shares), questions))
    return [[float(x < share) for x in row] for row, share in zip(drawn, shares, strict=True)]


def test_wilson_agrees_with_the_formula() -> None:
    low, high = wilson_interval(7, 10)
    z, p, n = 1.959963984540054, 0.7, 10
    middle, half = (p + z * z / (2 * n)), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))
    assert wilson_interval(0, 20)[1] == pytest.approx(0.16113, abs=1e-4)
    assert wilson_interval(20, 20)[0] == pytest.approx(1 - 0.16113, abs=1e-4)


def test_the_bootstrap_interval_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).random(400).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    # 10,000 resamples leave an error of about 2% of the width.
    assert low == pytest.approx(np.mean(values) - half, abs=0.1 * half)
    assert high == pytest.approx(np.mean(values) + half, abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high), "the same seed, the same interval"
    assert bootstrap_interval(values, level=0.8)[0] > low


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        values = np.random.default_rng(seed).beta(2, 5, 60).tolist()
        low, high = bootstrap_interval(values, resamples=500, seed=seed)
        held += low <= 2 / 7 <= high
    assert 180 <= held <= 198, "95% of 200 is 190, with a standard deviation of 3"


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    assert mean_interval([1.0] * 7 + [0.0] * 3) == wilson_interval(7, 10)
    assert mean_interval([1.0] * 5) == wilson_interval(5, 5)
    assert mean_interval([0.5, 1.0, 0.0]) == bootstrap_interval([0.5, 1.0, 0.0])


def test_paired_tests_agree_with_scipy() -> None:
    ours, theirs = _scores(3, 300, (0.62, 0.5))
    found = compare(ours, theirs)
    assert found.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p_t == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert found.p_bootstrap == pytest.approx(found.p_t, abs=0.01)
    differences = np.subtract(ours, theirs)
    scipys = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0))
    # Means of 300 differences move in steps of 1/300.
    assert found.interval == pytest.approx(tuple(scipys.confidence_interval), abs=2.5 / 300)
    assert (found.holm_bootstrap, found.holm_t) == (found.p_bootstrap, found.p_t)


def test_pairing_finds_what_two_independent_samples_would_not() -> None:
    hard = np.random.default_rng(0).random(200)
    ours, theirs = (hard + 0.01 * np.random.default_rng(1).random(200)).tolist(), hard.tolist()
    found = compare(ours, theirs)
    assert max(found.p_t, found.p_bootstrap) < 0.001
    assert stats.ttest_ind(ours, theirs).pvalue > 0.5


def test_under_chance_few_comparisons_seem_significant() -> None:
    found = [compare(*_scores(seed, 80, (0.5, 0.5)), resamples=500) for seed in range(200)]
    for column in ("p_bootstrap", "p_t"):
        share = np.mean([getattr(comparison, column) < 0.05 for comparison in found])
        assert 0.0 < share < 0.1, f"{column}: 5% +- 1.5% is expected"


def test_swapping_the_methods_turns_the_difference_round() -> None:
    ours, theirs = _scores(5, 100, (0.7, 0.5))
    one, other = compare(ours, theirs), compare(theirs, ours)
    assert other.difference == -one.difference
    assert other.p_t == pytest.approx(one.p_t)
    assert other.p_bootstrap == pytest.approx(one.p_bootstrap, abs=0.01)


def test_equal_scores_show_nothing_and_constant_gains_no_more_than_their_number() -> None:
    same = compare([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (same.difference, same.p_bootstrap, same.p_t, same.interval) == (0.0, 1.0, 1.0, (0.0, 0.0))
    three = compare([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert (three.difference, three.p_bootstrap, three.p_t) == (1.0, 0.25, 0.25)
    assert compare([0.3] * 40, [0.1] * 40).p_t < 1e-9


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    with refused(EvaluationError, "bad_p_value"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1.0, len(p_values) * p) + 1e-12
    by_size = [found for _, found in sorted(zip(p_values, adjusted, strict=True))]
    assert by_size == sorted(by_size), "the order stays"


def test_every_method_against_the_reference_is_corrected() -> None:
    rag, regrad, direct = _scores(7, 200, (0.6, 0.7, 0.3))
    found = compare_all({"rag": rag, "regrad": regrad, "direct": direct}, "rag")
    assert list(found) == ["regrad", "direct"]
    alone = compare(direct, rag)
    assert found["direct"].p_t == alone.p_t
    assert found["direct"].holm_t == pytest.approx(2 * alone.p_t)
    assert found["regrad"].holm_t == found["regrad"].p_t
    wider = corrected({(name, number): one for name, one in found.items() for number in (1, 2)})
    assert wider["direct", 1].holm_t == pytest.approx(4 * alone.p_t)


def test_resamples_drawn_in_chunks_are_all_there() -> None:
    values = np.random.default_rng(2).random(3000).tolist()
    low, high = bootstrap_interval(values, resamples=3001)
    assert 0.47 < low < np.mean(values) < high < 0.53


@pytest.mark.parametrize(
    ("ours", "theirs", "code", "fields"),
    [
        ([1.0, 0.0], [1.0, 0.0, 1.0], "other_lengths", {"values": 2, "reference": 3}),
        ([1.0], [0.0], "bad_numbers", {"expected": 2, "found": 1}),
        ([], [], "bad_numbers", {"expected": 2, "found": 0}),
        ([1.0, float("nan")], [0.0, 1.0], "bad_numbers", {"expected": 2, "found": 2}),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    ours: list[float], theirs: list[float], code: str, fields: dict[str, int]
) -> None:
    with refused(EvaluationError, code, **fields):
        compare(ours, theirs)


def test_wrong_settings_are_errors() -> None:
    with refused(EvaluationError, "bad_level", found=95):
        bootstrap_interval([0.0, 1.0], level=95)
    with refused(EvaluationError, "bad_resamples", found=0):
        compare([0.0, 1.0], [1.0, 1.0], resamples=0)
    with refused(EvaluationError, "impossible_share", successes=3, total=2):
        wilson_interval(3, 2)
    with refused(EvaluationError, "no_reference", reference="prag"):
        compare_all({"rag": [0.0, 1.0]}, "prag")


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
