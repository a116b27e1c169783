"""The benchmark of trained retrieval: its toys at a small size, and what it says of costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from retrieval_training import lab, toy
from retrieval_training.trial import OBJECTIVES, Remembered

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.settings import builtin_config, load_settings
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.likelihood import Asked

RUNS = 400


def drawn(found: toy.Candidates, shares: Tensor, seed: int) -> toy.Gradients:
    """Each run's gradient with one passage, drawn by these shares, in the place of the true posterior."""
    places = torch.multinomial(shares, RUNS, replacement=True, generator=torch.Generator().manual_seed(seed))
    gradient = found.prior.detach().softmax(1) - torch.nn.functional.one_hot(places, toy.PASSAGES)
    return gradient, gradient


def test_z_of_an_estimator_without_bias_is_that_of_a_standard_normal_whatever_the_toy() -> None:
    found = [toy.toy(RUNS, seed) for seed in range(40)]
    each = [toy.measured(one, drawn(one, toy.true_posterior(one), seed)) for seed, one in enumerate(found)]
    values = [toy.standardised([one]) for one in each]
    # Chi-squared with about ten degrees of freedom and a tail: above 2 is one in 25, above 6 one in tens of thousands.
    assert max(values) < 6
    assert abs(toy.standardised(each)) < 2.5
    assert sum(value > 2 for value in values) <= 5


def test_z_of_a_biased_estimator_is_large() -> None:
    one = toy.toy(RUNS)
    off = 0.8 * toy.true_posterior(one) + 0.2 / toy.PASSAGES
    assert toy.standardised([toy.measured(one, drawn(one, off, 1))]) > 4


def test_places_that_no_run_visits_do_not_make_z() -> None:
    """Their gradients are the same in all runs but for rounding, so that any error at all is many standard errors."""
    found = toy.toy(RUNS)
    shares = toy.true_posterior(found)
    unseen = shares * RUNS < 0.5
    assert unseen.sum() > 5
    gradient, _ = drawn(found, shares.masked_fill(unseen, 0.0), 3)
    gradient += 1e-9 * torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs(toy.standardised([toy.measured(found, (gradient, gradient))])) < 3


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(toy.rows(RUNS, 2))


def test_every_estimator_is_there_with_its_target_and_the_library_s_are_all_among_them(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    named = {row["estimator"] for row in rows}
    assert named == set(toy.TARGETS)
    for objective in OBJECTIVES:
        first = objective.split(",")[0]
        assert any(name.startswith(first) for name in named), objective
    toy.draw(rows, str(tmp_path / "figure.svg"))
    assert (tmp_path / "figure.svg").stat().st_size > 10_000


def test_what_is_exact_has_no_bias_and_what_is_not_the_marginal_s_has_no_z(rows: list[dict[str, Any]]) -> None:
    by_name = {(row["estimator"], row["m"]): row for row in rows}
    assert by_name["marginal, all", 0]["bias"] < 1e-9 == by_name["marginal, all", 0]["variance, prior"] + 1e-9
    assert by_name[f"marginal, top {toy.TOP}", 0]["bias"] > 0.1
    for row in rows:
        if row["target"] != toy.MARGINAL:
            assert row["z"] != row["z"], row["estimator"]
    # The first states of new chains lean to the proposals; one that was kept does not.
    assert by_name["jsa, all", 5]["z"] > 5
    assert abs(by_name["jsa, chain kept", toy.M]["z"]) < 3
    assert abs(by_name["jsa, simplified, chain kept", toy.M]["z"]) < 3


def test_figures_are_means_of_each_toys_ratios(rows: list[dict[str, Any]]) -> None:
    found = toy.figures(rows)
    by_name = {(row["estimator"], row["m"]): row for row in rows}
    kept, sampled = by_name["jsa, chain kept", toy.M], by_name["vrag, sampled", toy.M]
    each = [sum(a) / sum(b) for a, b in zip(kept["variances of each"], sampled["variances of each"], strict=True)]
    assert found["jsa_variance_over_vrag"] == pytest.approx(sum(each) / 2)
    assert found["jsa_variance_over_vrag_toys_below_1"] == sum(ratio < 1 for ratio in each)
    assert found["dro_variance_over_no_baseline"] < 1


class Slow:
    def of(self, asked: Sequence[Asked]) -> Tensor:
        return torch.tensor([float(len(passages)) for _, passages in asked])


def test_a_likelihood_is_computed_once_and_counted_each_time(tmp_path: Path) -> None:
    remembered = Remembered(Slow(), str(tmp_path / "kept.jsonl"))
    asked: list[Asked] = [(Question("1", "who?", ("Ada",)), (Passage(name, "", "text"),)) for name in "ab"]
    assert remembered.of(asked).tolist() == remembered.of(asked[:1] * 2).tolist() == [1.0, 1.0]
    assert (remembered.asked, remembered.computed) == (4, 2)
    assert 0 < remembered.computing <= remembered.spent
    again = Remembered(Slow(), str(tmp_path / "kept.jsonl"))
    assert again.of(asked).tolist() == [1.0, 1.0] and again.computed == 0


def test_the_lab_s_figures_are_of_what_was_trained() -> None:
    common = {"set": "many", "seed": 0, "em, prompt": 0.5, "em, gradient": 0.5}
    found = [{**common, "retriever": "bm25", "likelihood": "", "recall@3": 0.5}]
    found += [{**common, "retriever": "jsa", "likelihood": "gradient", "recall@3": 0.75}]
    assert set(lab.figures(found)) == {
        "many_recall3_bm25",
        "many_recall3_jsa_gradient",
        "many_em_gain_under_gradient",
    }
    found += [{**common, "retriever": "jsa", "likelihood": "prompt", "recall@3": 1.0}]
    assert lab.figures(found)["many_recall3_gain"] == 0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objectives_that_are_compared_are_settings(objective: str) -> None:
    values = ["index=i", "output=o", "others=[]", "questions.path=q", f"objective={OBJECTIVES[objective]}"]
    made = load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), values)
    assert made.objective.kind == objective.split(",")[0]
