"""Whether a run reads or learns the task: the outer loss with the right passages, another task's and none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from regrad.data.tasks import Task
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.training.checkpoint import DevScore
from regrad.training.meta.collate import collate
from regrad.training.meta.config import ReadingConfig
from regrad.training.meta.objective import Point, adapt, question_loss
from regrad.training.meta.reading import ReadingSums, means, reading_sums, reading_warning, spread
from regrad.training.trackers import Watcher, score_line
from tests.unit.training.meta.test_training import Keeper, Run, settings, steps_of


@pytest.fixture(scope="module")
def tasks(world: World) -> list[Task]:
    return [
        Task.from_record(record) for record in lab_tasks(world.meta[:60], LabConfig(people_per_record=3), 60, seed=3)
    ]


@pytest.fixture(scope="module")
def dev(world: World) -> list[Task]:
    return [
        Task.from_record(record) for record in lab_tasks(world.meta[-12:], LabConfig(people_per_record=3), 4, seed=5)
    ]


def one_passage(task: Task, number: int) -> Task:
    """A task of one passage and its first questions, of a length that a test can compute by hand."""
    questions = tuple(replace(question, context=(0,)) for question in task.questions[:2])
    return Task((task.passages[number],), questions, f"{task.id}/{number}")


def a_point(lm: LanguageModel) -> Point:
    generator = torch.Generator().manual_seed(1)
    phi0 = lm.subspace.initial(0) + 0.1 * torch.randn(lm.subspace.size, generator=generator)
    return Point(phi0, torch.full_like(phi0, 0.5))


def test_the_three_losses_are_the_outer_loss_under_three_updates(tiny: LanguageModel, tasks: list[Task]) -> None:
    """Of three tasks in a circle, each question is also asked under the next one's passage."""
    part, at = [one_passage(task, 0) for task in tasks[:9:4]], a_point(tiny)
    found = reading_sums(tiny, at, part)
    batch = collate(tiny, part)
    with torch.no_grad():
        updates, _ = adapt(tiny, at, batch)
        right, other, none = (
            float(question_loss(tiny, update, batch)) for update in (updates, updates.roll(-1, 0), at.phi0)
        )
    assert found.tasks == pytest.approx(3)
    assert means([found]) == pytest.approx({"loss_right": right, "loss_other": other, "loss_none": none}, rel=1e-4)
    assert len({round(right, 3), round(other, 3), round(none, 3)}) == 3


def test_another_passage_is_never_one_that_the_task_has_itself(tiny: LanguageModel, tasks: list[Task]) -> None:
    at = a_point(tiny)
    assert reading_sums(tiny, at, tasks[:1]) == ReadingSums()
    assert reading_sums(tiny, at, [tasks[0], replace(tasks[0], id="the same passages")]).tasks == 0
    mine, other = one_passage(tasks[0], 0), one_passage(tasks[8], 0)
    assert not set(mine.passages) & set(other.passages)
    assert reading_sums(tiny, at, [mine, replace(mine, id="again"), other]).tasks == pytest.approx(3)


def test_sets_count_alike_and_one_that_cannot_be_compared_does_not_count() -> None:
    found = means([ReadingSums(2, 4, 6, 2), ReadingSums(), ReadingSums(3, 3, 3, 1)])
    assert found == {"loss_right": 2, "loss_other": 2.5, "loss_none": 3}
    assert means([ReadingSums()]) == {}


def test_tasks_are_chosen_from_all_over_a_set() -> None:
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 64) == [0, 1, 2]


def scores(*gaps: float, every: int = 10) -> list[DevScore]:
    return [
        DevScore((i + 1) * every, {"f1": 0.1, "loss_right": 2.0, "loss_other": 2.0 + gap, "loss_none": 2.5})
        for i, gap in enumerate(gaps)
    ]


@pytest.mark.parametrize(
    ("gaps", "when"),
    [
        ((0.0, 0.01, -0.2), 3),
        ((0.0, 0.01, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0), 3),
        ((0.0, 0.01, 0.06, 0.0, 0.0, 0.049), 6),
        ((0.5, 0.6, 0.7, 0.8), None),
        ((0.0, 0.0), None),
    ],
)
def test_the_warning_comes_once_after_the_first_scores_in_a_row_without_a_gap(
    gaps: Sequence[float], when: int | None
) -> None:
    made = scores(*gaps)
    said = [n for n in range(1, len(made) + 1) if reading_warning(made[:n], 0, ReadingConfig(), 0.01)]
    assert said == ([] if when is None else [when])


def test_the_warm_up_does_not_count_and_the_warning_says_what_to_try() -> None:
    made = scores(0, 0, 0, 0)
    assert reading_warning(made, 20, ReadingConfig(), 0.01) == ""
    text = reading_warning(made, 10, ReadingConfig(), 0.01)
    assert "inner.initial_step_size" in text and "0.01" in text
    without = [DevScore(step, {"f1": 0.0}) for step in (10, 20, 30)]
    assert reading_warning(without, 0, ReadingConfig(), 0.01) == ""


def test_every_dev_score_has_the_losses_in_line_trackers_and_card(
    tiny: LanguageModel, tasks: list[Task], dev: list[Task]
) -> None:
    config, keeper = settings(tiny, scoring={"every": 3, "max_new_tokens": 1}), Keeper()
    run = Run(tiny, config, keeper, [dev])
    state = run.loop.run(steps_of(tasks, config))
    names = {"loss_right", "loss_other", "loss_none"}
    assert [score.step for score in keeper.scores if names <= set(score.values)] == [3, 6]
    assert f"loss right {keeper.scores[-1].values['loss_right']:.4g}" in score_line(keeper.scores[-1])
    card = run.learner.product(state).notes["dev"][-1]
    assert {name: card[name] for name in names} == {name: keeper.scores[-1].values[name] for name in names}
    logged: dict[str, float] = {}

    class Sink:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.update(values)

        def close(self) -> None: ...

    Watcher(lambda line: None, [Sink()])(keeper.scores[-1])  # type: ignore[list-item]
    assert {f"dev/{name}" for name in names} <= set(logged)


def test_it_is_not_measured_if_that_is_asked_for(tiny: LanguageModel, tasks: list[Task], dev: list[Task]) -> None:
    config = settings(tiny, scoring={"max_new_tokens": 1, "reading": {"tasks": 0}})
    assert set(Run(tiny, config).learner.score([dev], 1).values) == {"exact_match", "f1", "questions"}


@pytest.mark.slow
def test_a_start_that_is_trained_to_read_widens_the_gap_and_one_on_swapped_passages_is_warned_about(
    lab_model: LanguageModel, tasks: list[Task], dev: list[Task]
) -> None:
    """The lab's base reads a little from the start, so that the gap that counts as one is larger here."""
    swapped = [replace(task, passages=other.passages) for task, other in zip(tasks, tasks[7:] + tasks[:7], strict=True)]
    gaps, notes = {}, {}
    for name, data in (("right", tasks), ("swapped", swapped)):
        config = settings(
            lab_model,
            inner={"initial_step_size": 0.3},
            optimizer={"steps": 24, "batch_size": 2, "lr": 4e-3, "step_size_lr": 3e-2, "schedule": "constant"},
            scoring={"every": 8, "max_new_tokens": 1, "reading": {"least_gap": 0.5}},
            shape={"questions": 4},
        )
        keeper = Keeper()
        Run(lab_model, config, keeper, [dev]).loop.run(steps_of(data, config))
        gaps[name] = [score.values["loss_other"] - score.values["loss_right"] for score in keeper.scores]
        notes[name] = [note for note in keeper.notes if note.startswith("WARNING: the model is not using the passages")]
    assert gaps["right"][-1] > gaps["right"][0] + 0.5
    assert gaps["right"][-1] > 1 > gaps["swapped"][-1]
    assert (len(notes["right"]), len(notes["swapped"])) == (0, 1)
