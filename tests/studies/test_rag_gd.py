from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regrad.errors import EvaluationError
from regrad.theory import descend
from regrad.theory.objective import predict
from studies.rag_gd.__main__ import run
from studies.rag_gd.config import RagGdConfig, TrainingConfig
from studies.rag_gd.findings import Mean
from studies.rag_gd.layers import constructed
from studies.rag_gd.measuring import compare
from studies.rag_gd.plan import make_steps, read_rows
from studies.rag_gd.tabular import ConstructedLayer, Table, load_table, normalise
from studies.rag_gd.tasks import DotProduct, Projection
from tests.tools.refusals import refused

TINY = RagGdConfig(
    seeds=(0, 1),
    size=3,
    examples=4,
    documents=(2,),
    stacked_documents=(2,),
    reaches=(1.0, 2.0),
    depths=(2,),
    sets=("wine",),
    normalisations=("z-score",),
    hidden=4,
    tabular_documents=2,
    test_tasks=20,
    training=TrainingConfig(steps=3, stacked_steps=3, tabular_steps=3, batch_size=4),
)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_a_tiny_study_writes_its_report_and_does_nothing_twice(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"output": str(tmp_path)})
    run(config)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"projection", "dot-product", "stacked", "tabular"}
    assert len(rows) == 2 * (2 + 2 + 1 + 1)
    assert all(math.isfinite(row["relative"]) for row in rows)
    text = (tmp_path / "rag-gd-boundary.md").read_text()
    for image in ("documents", "reach", "depth", "tabular"):
        assert (tmp_path / "images" / f"rag-gd-{image}.svg").exists()
        assert f"images/rag-gd-{image}.svg" in text
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    run(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == made


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"output": str(tmp_path), "sets": ("wine",)})
    for step in make_steps(config):
        step.run()
    (tmp_path / "cells" / "tabular-wine.json").write_text("[")
    with refused(EvaluationError, "damaged"):
        read_rows(config)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_reference_is_the_best_descent_that_a_fine_grid_finds(depth: int) -> None:
    for tasks in (Projection(TINY, 3).draw(5, drawn()), DotProduct(TINY, 3, 0).draw(5, drawn())):
        found = constructed(tasks, depth)(tasks)
        errors = [
            float((predict(tasks.problem, *descend(tasks.problem, step, depth)) - tasks.target).square().mean())
            for step in torch.logspace(-3, math.log10(30), 200).tolist()
        ]
        # The line search is at least as good as the best of a fine grid.
        assert float((found - tasks.target).square().mean()) <= min(errors) * (1 + 1e-3)


def test_a_predictor_does_not_differ_from_itself() -> None:
    tasks = Projection(TINY, 2).draw(50, drawn())
    predictor = constructed(tasks, 1)
    found = compare(predictor, predictor, tasks)
    assert found.difference == 0
    assert found.distance == 0
    assert found.cosine == pytest.approx(1)


def test_predicting_nothing_is_one_away_and_the_opposite_has_the_opposite_sensitivity() -> None:
    tasks = Projection(TINY, 2).draw(50, drawn())
    predictor = constructed(tasks, 1)
    assert compare(lambda asked: 0 * predictor(asked), predictor, tasks).relative == pytest.approx(1)
    assert compare(lambda asked: -predictor(asked), predictor, tasks).cosine == pytest.approx(-1)


def test_inputs_reach_as_far_as_asked() -> None:
    tasks = Projection(TINY, 2).draw(500, drawn(), reach=2.0)
    assert 1.5 < float(tasks.problem.query1.abs().max()) <= 2
    assert float(tasks.problem.x1.abs().max()) <= 1


def test_normalisations_keep_their_ranges_on_training_rows() -> None:
    features, _ = load_table("student-t", 0)
    for kind, low, high in (("min-max", 0, 1), ("rank", -1, 1), ("tanh", -1, 1)):
        found = normalise(features, features, kind)  # type: ignore[arg-type]
        assert low <= found.min() < found.max() <= high
    scored = normalise(features, features, "z-score")
    assert np.allclose(scored.mean(0), 0)
    assert np.allclose(scored.std(0), 1)


def test_the_constructed_head_is_one_step_of_descent_from_its_documents() -> None:
    config = TINY.model_copy(update={"size": 13})
    head = ConstructedLayer(config, drawn())
    tasks = DotProduct(config, 2, 0).draw(3, drawn())
    problem = tasks.problem
    with torch.no_grad():
        found = head(tasks)
        assert tasks.documents is not None
        made = head.value @ (tasks.documents.mT @ tasks.documents) @ head.match
        residual = problem.x1 @ made.mT - problem.y
        shift = -2 * head.step / config.examples * (residual.mT @ problem.x1)
        expected = ((made + shift) @ problem.query1[..., None])[..., 0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_test_queries_are_no_training_rows() -> None:
    table = Table(TINY, "wine", "z-score", 0)
    training = {tuple(row) for row in table.draw(2000, drawn()).problem.query1.tolist()}
    test = {tuple(row) for row in table.draw(500, drawn(), test=True).problem.query1.tolist()}
    assert not training & test


def test_an_interval_over_seeds_is_students() -> None:
    assert Mean((1.0, 2.0, 3.0)).half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert Mean((1.0,)).half is None
