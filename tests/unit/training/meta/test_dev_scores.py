"""Dev tasks: when they are scored, by which rules, at which k, and how sets are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regrad.data.tasks import Task
from regrad.inference.decoding import Generation
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.training.meta.config import DevConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.trainer import Sums, score_tasks
from tests.unit.training.meta.test_training import Keeper, Run, load, settings, steps_of
from tests.unit.training.meta.test_training import tasks as tasks


def test_dev_tasks_are_scored_as_often_as_asked_each_with_a_checkpoint(
    tiny: LanguageModel, tasks: list[Task], tmp_path: Path
) -> None:
    config = settings(tiny, scoring={"every": 2}, checkpoints={"every": 100})
    keeper = Keeper(tmp_path)
    Run(tiny, config, keeper, [tasks[:1]]).loop.run(steps_of(tasks, config))
    assert [score.step for score in keeper.scores] == [2, 4, 6]
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 6]
    assert load(tmp_path / "4", tiny)[0].latest_score == keeper.scores[1]


def test_sets_of_dev_tasks_count_alike_however_many_questions_each_has(
    tiny: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three right of the first set, one half right of the second: 0.75, where all four together have 0.875."""
    found = iter([Sums(3, 3, 3), Sums(0, 0.5, 1)])
    monkeypatch.setattr("regrad.training.meta.trainer.score_tasks", lambda *arguments: next(found))
    run = Run(tiny, settings(tiny))
    values = run.learner.score([tasks[:1], tasks[1:2]], 6).values
    assert values == {"exact_match": 0.5, "f1": 0.75, "questions": 4}


def test_dev_scores_are_by_the_rules_that_were_chosen(
    tiny: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HotpotQA gives no partial credit where one of the two is "no"."""
    told = replace(tasks[0], questions=(replace(tasks[0].questions[0], answer="no"),))
    monkeypatch.setattr(
        "regrad.training.meta.trainer.generate", lambda lm, requests: [Generation("no way", 1)] * len(requests)
    )
    point = Point(tiny.subspace.initial(0), torch.zeros(tiny.subspace.size))
    assert score_tasks(tiny, point, [told], config=DevConfig()).f1 == pytest.approx(2 / 3)
    assert score_tasks(tiny, point, [told], config=DevConfig(rules="hotpotqa")).f1 == 0


def test_dev_tasks_are_scored_at_the_k_that_is_trained(
    tiny: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Task] = []
    monkeypatch.setattr(
        "regrad.training.meta.trainer.score_tasks", lambda lm, at, given, *rest: seen.extend(given) or Sums(1, 1, 1)
    )
    config = settings(tiny, shape={"k": 1, "questions": 1, "distractor_probability": 1.0})
    Run(tiny, config, dev=[tasks[:1]]).loop.run(steps_of(tasks, config))
    [task] = seen
    assert len(task.questions) == len(tasks[0].questions)
    assert {len(question.context) for question in task.questions} == {1}


def test_scores_use_gamma_and_the_same_update_as_training(lab_model: LanguageModel, world: World) -> None:
    """With no update (gamma near zero) the lab's base knows none of the people; the sums add up over parts."""
    records = [Task.from_record(r) for r in lab_tasks(world.meta[-20:], LabConfig(people_per_record=3), 4, seed=5)]
    point = Point(lab_model.subspace.initial(0), torch.full((lab_model.subspace.size,), 5.0))
    whole = score_tasks(lab_model, point, records)
    parts = score_tasks(lab_model, point, records[:1]) + score_tasks(lab_model, point, records[1:])
    assert whole == parts and whole.questions == 60
    none = score_tasks(lab_model, point, records, config=DevConfig(gamma=1e-6))
    assert none.exact_match < whole.exact_match, "raw gradients answer some"
    assert whole.f1 >= whole.exact_match


def test_dev_tasks_may_be_none_one_place_or_several(tiny: LanguageModel) -> None:
    assert [settings(tiny, dev=dev).dev for dev in (None, "s3://b/dev", ["s3://b/a", "s3://b/c"])] == [
        (),
        ("s3://b/dev",),
        ("s3://b/a", "s3://b/c"),
    ]
