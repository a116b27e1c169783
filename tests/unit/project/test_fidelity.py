"""The benchmark beside the authors' code, without their code: what it makes up, measures and leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from fidelity import figures
from releases.metric_rows import awkward
from releases.rows import Row, of_largest, of_norms

FILE = Path(__file__).parents[3] / "benchmarks" / "fidelity.py"


def test_awkward_answers_are_the_same_for_a_seed_and_of_every_kind() -> None:
    pairs = awkward(500)
    assert pairs == awkward(500) != awkward(500, seed=1)
    said = {pair.said for pair in pairs}
    assert "" in said and any("\n" in text for text in said) and any(not text.isascii() for text in said)
    assert {len(pair.answers) for pair in pairs} == {1, 2, 3}
    assert any(pair.said == pair.answers[0] for pair in pairs)


def test_differences_are_relative_to_what_the_authors_have() -> None:
    ours, theirs = torch.tensor([3.0, -4.0]), torch.tensor([3.0, -5.0])
    assert of_largest(ours, theirs) == pytest.approx((1.0, 0.2))
    assert of_norms(ours, theirs) == pytest.approx(1 / 34**0.5)


def test_a_figure_is_the_largest_of_its_rows_and_exact_strategies_have_their_own() -> None:
    rows = [
        Row("meta-gradient, graph, mode tie, untrained start", relative=1e-7),
        Row("meta-gradient, hvp, mode full, trained start", relative=3e-7),
        Row("meta-gradient, difference, mode tie, trained start", relative=1e-3),
    ]
    assert figures(rows) == {
        "meta_gradient_max_relative": 3e-7,
        "meta_gradient_difference_trained_max_relative": 1e-3,
    }


@pytest.mark.slow
def test_without_a_release_its_rows_say_why_and_no_figure_is_made_up(tmp_path: Path) -> None:
    command = [sys.executable, str(FILE), "--quick", "--start-steps", "1", "--json", str(tmp_path / "f.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "skipped: --regrad-release DIR was not given" in done.stdout
    found = json.loads((tmp_path / "f.json").read_text())["figures"]
    assert set(found) == {f"difference_from_graph_{start}" for start in ("untrained", "alpha_10", "trained")}
    assert 0 < found["difference_from_graph_untrained"] < 1e-4
