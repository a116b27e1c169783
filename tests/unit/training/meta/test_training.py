"""The loop in one process: parameters, schedules, checkpoints, skipped steps, dev scores, and who watches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.tasks import Task
from regrad.errors import ConfigError, MetaInitError, TrainingError
from regrad.inference.decoding import Generation
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent, StepReport
from regrad.training.checkpoint import DevScore, TrainCheckpoint, TrainState, load_train_checkpoint
from regrad.training.config import TrackingConfig
from regrad.training.loop import Loop
from regrad.training.meta.config import DevConfig, InnerConfig, MetaTrainConfig, OptimizerConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.task_plan import TasksInMemory
from regrad.training.meta.trainer import META_INIT, MetaLearner, Sums, meta_loop, score_tasks
from regrad.training.trackers import Sink, Watcher, make_sinks, score_line, step_line
from tests.tools.refusals import refused


@pytest.fixture(scope="module")
def tasks(world: World) -> list[Task]:
    records = lab_tasks(world.meta[:40], LabConfig(people_per_record=3), 6, seed=3)
    return [Task.from_record(record) for record in records]


def settings(lm: LanguageModel, **changes: Any) -> MetaTrainConfig:
    data = {
        "model": lm.config.model_dump(),
        "tasks": "unused.jsonl",
        "output": "unused",
        "inner": {"initial_step_size": 0.5},
        "optimizer": {"steps": 6, "batch_size": 2, "lr": 1e-2},
        "checkpoints": {"every": 3},
        "watch": {"every": 2},
        "strategy": {"name": "graph"},
    }
    return parse_settings(MetaTrainConfig, {**data, **changes}, "test")


class Keeper(Silent):
    """Keeps everything that it is told."""

    def __init__(self, folder: Path | None = None) -> None:
        self.notes: list[str] = []
        self.reports: list[StepReport] = []
        self.scores: list[DevScore] = []
        self.folder = folder

    def note(self, text: str) -> None:
        self.notes.append(text)

    def report(self, report: StepReport) -> None:
        self.reports.append(report)

    def scored(self, score: DevScore) -> None:
        self.scores.append(score)

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / str(checkpoint.state.step))


class Run:
    """A run in this process, with what a test looks at."""

    def __init__(
        self,
        lm: LanguageModel,
        config: MetaTrainConfig,
        listener: Silent | None = None,
        dev: Sequence[Sequence[Task]] = (),
    ) -> None:
        self.engine = PlainEngine(MetaParameters(lm.subspace, config.inner, config.seed), config.optimizer)
        self.learner = MetaLearner(lm, self.engine, config, lm.identity(), {"kept": 1})
        self.loop: Loop[Task] = meta_loop(self.learner, config, dev, listener)


def steps_of(tasks: Sequence[Task], config: MetaTrainConfig, first: int = 0) -> Iterator[list[Task]]:
    return TasksInMemory.of(config, [tasks]).steps(first)


def load(folder: Path, lm: LanguageModel) -> tuple[TrainState, dict[str, Any]]:
    return load_train_checkpoint(folder, MetaLearner.kind, lm.identity())


@pytest.mark.parametrize("mode", ["tie", "same", "full", "fix"])
@pytest.mark.parametrize("space", ["linear", "absolute", "log"])
def test_step_sizes_start_where_they_should_and_get_the_gradient_of_their_mode(
    tiny: LanguageModel, mode: Any, space: Any
) -> None:
    inner = InnerConfig(initial_step_size=0.3, step_size_mode=mode, step_size_space=space)
    parameters = MetaParameters(tiny.subspace, inner, 0)
    size, count = tiny.subspace.size, len(tiny.subspace.shapes)
    torch.testing.assert_close(parameters.point().alpha, torch.full((size,), 0.3))
    assert parameters.step_sizes().shape == ((size,) if mode == "full" else (count,))
    gradient_P = torch.randn(size, generator=torch.Generator().manual_seed(0))
    parameters(MetaGradient(torch.zeros(()), torch.zeros(()), gradient_P, gradient_P)).backward()
    torch.testing.assert_close(parameters.phi0.grad, gradient_P)
    per_tensor = torch.stack([part.sum() for part in gradient_P.split(tiny.subspace.lengths)])
    expected = {"tie": per_tensor, "same": gradient_P.sum().reshape(1), "full": gradient_P, "fix": None}[mode]
    if expected is None:
        assert [name for name, _ in parameters.named_parameters()] == ["phi0"]
    else:  # d alpha / d raw at the start: the initial step size, or one where raw is alpha
        slope = 1.0 if space == "absolute" else 0.3
        torch.testing.assert_close(parameters.raw.grad, slope * expected, rtol=1e-4, atol=1e-4)


def test_a_step_of_adamw_moves_alpha_by_the_rate_in_absolute_space_and_relative_to_its_start_in_linear(
    tiny: LanguageModel,
) -> None:
    one = torch.ones(tiny.subspace.size)
    gradient = MetaGradient(torch.zeros(()), torch.zeros(()), one, one)
    moved = {}
    for space in ("linear", "absolute"):
        inner = InnerConfig(initial_step_size=0.01, step_size_space=space)  # type: ignore[arg-type]
        engine = PlainEngine(MetaParameters(tiny.subspace, inner, 0), OptimizerConfig(lr=4e-4, clip=1e9))
        engine.apply(gradient, 1.0)
        moved[space] = float(engine.step_sizes()[0]) - 0.01
    assert moved["absolute"] == pytest.approx(-4e-4, rel=1e-3)
    assert moved["linear"] == pytest.approx(-4e-6, rel=1e-3)


def test_phi0_and_the_step_sizes_decay_each_by_its_own_weight(tiny: LanguageModel) -> None:
    """The gradient is zero, so that nothing but the decay moves them."""
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, step_size_weight_decay=0.2)
    inner = InnerConfig(initial_step_size=0.01, step_size_space="absolute")
    engine = PlainEngine(MetaParameters(tiny.subspace, inner, 0), config)
    before, zero = engine.point().phi0.clone(), torch.zeros(tiny.subspace.size)
    engine.apply(MetaGradient(zero.sum(), zero.sum(), zero, zero), 1.0)
    torch.testing.assert_close(engine.point().phi0, 0.95 * before)
    torch.testing.assert_close(engine.step_sizes(), torch.full_like(engine.step_sizes(), 0.01 * 0.98))


def test_a_run_can_start_from_another_meta_init(tiny: LanguageModel, meta_init: MetaInit) -> None:
    for mode, space in (("tie", "linear"), ("tie", "absolute"), ("tie", "log"), ("full", "linear")):
        inner = InnerConfig(initial_step_size=0.2, step_size_mode=mode, step_size_space=space)  # type: ignore[arg-type]
        point = MetaParameters(tiny.subspace, inner, 0, meta_init).point()
        torch.testing.assert_close(point.phi0, meta_init.phi0)
        torch.testing.assert_close(point.alpha, tiny.subspace.per_tensor(meta_init.step_sizes))
    negative = replace(meta_init, step_sizes=-meta_init.step_sizes)
    with refused(TrainingError, "start_from_space", expected="linear"):
        MetaParameters(tiny.subspace, InnerConfig(step_size_space="log"), 0, negative)
    full = replace(meta_init, step_sizes=torch.ones(tiny.subspace.size))
    with refused(TrainingError, "start_from_mode", expected="full"):
        MetaParameters(tiny.subspace, InnerConfig(), 0, full)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rates_warm_up_and_then_follow_the_schedule(schedule: Any) -> None:
    config = OptimizerConfig(steps=100, warmup_fraction=0.1, schedule=schedule)
    factors = [config.learning_rate_factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    middle = {"linear": 0.5, "cosine": 0.5, "constant": 1.0}[schedule]
    assert factors[55] == pytest.approx(middle)
    assert factors[99] == pytest.approx(
        {"linear": 1 / 90, "cosine": (1 - math.cos(math.pi / 90)) / 2}.get(schedule, 1.0)
    )


def test_a_warm_up_can_start_at_a_share_of_the_rate_as_the_releases_does() -> None:
    """The rates of PyTorch's LinearLR(0.01, 1, n) and then LinearLR(1, 0, rest), which the release has."""
    config = OptimizerConfig(steps=37, warmup_fraction=0.1, warmup_start=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    linear, warmup = torch.optim.lr_scheduler.LinearLR, 3
    rise = linear(optimizer, start_factor=0.01, end_factor=1.0, total_iters=warmup)
    fall = linear(optimizer, start_factor=1.0, end_factor=0.0, total_iters=37 - warmup)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])
    expected = []
    for _ in range(37):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [config.learning_rate_factor(step) for step in range(37)] == pytest.approx(expected)


def test_a_resumed_run_has_the_same_losses_and_the_same_bits(
    tiny: LanguageModel, tasks: list[Task], tmp_path: Path
) -> None:
    config = settings(tiny)
    whole = Run(tiny, config, Keeper(tmp_path))
    state = whole.loop.run(steps_of(tasks, config))
    resumed = Run(tiny, config)
    before, tensors = load(tmp_path / "3", tiny)
    assert before.step == 3
    resumed.learner.load(tensors)
    after = resumed.loop.run(steps_of(tasks, config, before.step), before)
    assert after.losses == state.losses and len(state.losses) == 6
    for name, value in whole.engine.state().items():
        assert torch.equal(value, resumed.engine.state()[name]), name
    assert MetaInit.load(tmp_path / "6" / META_INIT).fingerprint == resumed.learner.product(after).fingerprint


def test_micro_batches_give_the_same_step_as_one_batch(tiny: LanguageModel, tasks: list[Task]) -> None:
    results = []
    for micro in (None, 1):
        optimizer = {"steps": 2, "batch_size": 4, "micro_batch": micro}
        config = settings(tiny, optimizer=optimizer)
        run = Run(tiny, config)
        state = run.loop.run(steps_of(tasks, config))
        results.append((state.losses, run.engine.point().phi0.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tiny: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, keeper = settings(tiny), Keeper()
    run = Run(tiny, config, keeper)
    poison(monkeypatch, run.learner, {2, 3})
    state = run.loop.run(steps_of(tasks, config))
    assert state.skipped == [2, 3] and len(state.losses) == 4 and state.step == 6
    assert "step 2 is skipped: its loss or gradient is not finite" in keeper.notes
    assert bool(torch.isfinite(run.engine.point().phi0).all())
    assert keeper.reports[-1].skipped == 2
    assert run.learner.product(state).notes["skipped_steps"] == 2


def test_too_many_bad_steps_in_a_row_stop_the_run_and_earlier_ones_do_not_count(
    tiny: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    optimizer = {"steps": 6, "batch_size": 2, "max_bad_steps": 2}
    config = settings(tiny, optimizer=optimizer)
    run = Run(tiny, config, Keeper(tmp_path))
    poison(monkeypatch, run.learner, {2, 5, 6})
    with refused(TrainingError, "not_finite", step=6, times=2):
        run.loop.run(steps_of(tasks, config))
    assert load(tmp_path / "3", tiny)[0].skipped == [2], "the last good checkpoint is intact"


def poison(monkeypatch: pytest.MonkeyPatch, learner: MetaLearner, steps: set[int]) -> None:
    original, count = learner._gradient, iter(range(1, 100))

    def gradient(part: Any) -> tuple[MetaGradient, dict[str, int]]:
        found, counts = original(part)
        return (replace(found, phi0=found.phi0 * math.nan) if next(count) in steps else found), counts

    monkeypatch.setattr(learner, "_gradient", gradient)


def test_training_lowers_the_loss_and_the_card_says_what_was_done(tiny: LanguageModel, tasks: list[Task]) -> None:
    config = settings(tiny, optimizer={"steps": 30, "batch_size": 2, "lr": 2e-2, "schedule": "cosine"})
    keeper = Keeper()
    run = Run(tiny, config, keeper, [tasks[:2]])
    state = run.loop.run(steps_of(tasks, config))
    assert sum(state.losses[-5:]) < 0.7 * sum(state.losses[:5])
    assert [report.step for report in keeper.reports] == list(range(2, 31, 2))
    last = keeper.reports[-1]
    assert last.loss == pytest.approx(sum(state.losses[-2:]) / 2)
    assert last.rates["tokens"] > last.rates["passages"] > 0 and last.memory_gb > 0.01
    low, middle, high = (last.numbers[f"step_size_{name}"] for name in ("low", "middle", "high"))
    assert low <= middle <= high and last.numbers["inner_loss"] > 0
    notes = run.learner.product(state).notes
    assert notes["kept"] == 1 and notes["steps"] == 30 and notes["dev"][0]["questions"] == 30
    assert keeper.scores[0].step == 30


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


def test_the_strategy_that_auto_chose_is_kept_in_the_checkpoint(
    tiny: LanguageModel, tasks: list[Task], tmp_path: Path
) -> None:
    lean = settings(tiny, strategy={"name": "auto", "memory_gb": 1e-9})
    keeper = Keeper(tmp_path)
    Run(tiny, lean, keeper).loop.run(steps_of(tasks, lean))
    assert keeper.notes[0].startswith("strategy difference: estimated GB")
    state, tensors = load(tmp_path / "3", tiny)
    assert state.decided == {"strategy": "difference"}
    later = Keeper()
    run = Run(tiny, settings(tiny, strategy={"name": "auto"}), later)
    run.learner.load(tensors)
    run.loop.run(steps_of(tasks, lean, 3), state)
    assert later.notes == ["strategy difference, as before"]


def test_tasks_that_end_too_early_are_an_error(tiny: LanguageModel, tasks: list[Task]) -> None:
    config = settings(tiny)
    with refused(TrainingError, "batches_ended", step=2, steps=6):
        Run(tiny, config).loop.run(list(steps_of(tasks, config))[:2])


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": {"steps": 2}, "strategy": {"name": "hvp"}}, "inner.steps above 1 needs strategy.name graph"),
        ({"strategy": {"name": "graph", "activation_checkpointing": True}}, "difference or first-order"),
        ({"optimizer": {"zero_stage": 3}}, "zero_stage 3 needs strategy.name difference"),
        ({"tasks": []}, "tasks"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr"),
        ({"optimizer": {"betas": [2, 3]}}, "optimizer.betas"),
        ({"scoring": {"gamma": math.nan}}, "scoring.gamma"),
        ({"strateg": {}}, "did you mean 'strategy'"),
        ({"shape": {"distractor_probabilty": 1}}, "did you mean 'shape.distractor_probability'"),
        ({"tasks": [{"uri": "a", "wieght": 1}]}, "did you mean 'tasks.0.weight'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny: LanguageModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tiny, **changes)


def test_tasks_may_be_one_place_or_weighted_sources(tiny: LanguageModel) -> None:
    assert [source.weight for source in settings(tiny, tasks="s3://b/t").tasks] == [None]
    mixed = settings(tiny, tasks=["s3://b/general", {"uri": "s3://b/law", "weight": 2}]).tasks
    assert [(source.uri, source.weight) for source in mixed] == [("s3://b/general", None), ("s3://b/law", 2.0)]


def test_dev_tasks_may_be_none_one_place_or_several(tiny: LanguageModel) -> None:
    assert [settings(tiny, dev=dev).dev for dev in (None, "s3://b/dev", ["s3://b/a", "s3://b/c"])] == [
        (),
        ("s3://b/dev",),
        ("s3://b/a", "s3://b/c"),
    ]


def test_an_update_with_a_step_size_for_each_number_survives_saving(meta_init: MetaInit, tmp_path: Path) -> None:
    full = replace(meta_init, step_sizes=torch.rand(meta_init.subspace.size), step_size_mode="full")
    full.save(tmp_path / "m")
    loaded = MetaInit.load(tmp_path / "m")
    assert loaded.fingerprint == full.fingerprint != meta_init.fingerprint and loaded.step_size_mode == "full"
    atom = torch.randn(meta_init.subspace.size)
    torch.testing.assert_close(loaded.update(atom), full.phi0 - full.step_sizes * atom)


def test_a_meta_init_for_several_inner_steps_has_no_bank(tiny: LanguageModel, meta_init: MetaInit) -> None:
    from regrad.gradients.extractor import AtomExtractor

    several = replace(meta_init, inner_steps=2)
    assert several.fingerprint != meta_init.fingerprint
    with refused(MetaInitError, "several_inner_steps", inner_steps=2):
        AtomExtractor(tiny, several)


REPORT = StepReport(10, 20, 1.5, 3.0, 0.5, 1, {"tokens": 5.0}, {"step_size_low": 0.1, "gradient_error": 2e-6})
SCORE = DevScore(20, {"exact_match": 0.5, "f1": 0.75, "questions": 8})


def sinks(tmp_path: Path, **watch: Any) -> list[Sink]:
    return make_sinks(TrackingConfig(**watch), str(tmp_path / "m"), {"seed": 0})


def test_watchers_see_lines_and_tensorboard_files(tmp_path: Path) -> None:
    lines: list[str] = []
    watcher = Watcher(lines.append, sinks(tmp_path))
    for item in ("a note", REPORT, SCORE):
        watcher(item)
    watcher.close()
    assert lines == ["a note", step_line(REPORT), score_line(SCORE)]
    assert lines[1] == (
        "step 10/20  loss 1.5000  step size low 0.1  gradient error 2e-06  5 tokens/s  0.50 GB  3 s  1 steps skipped"
    )
    assert lines[2] == "step 20  dev  exact match 0.5  f1 0.75  questions 8"
    [events] = (tmp_path / "m.logs").iterdir()
    content = events.read_bytes()
    for tag in (b"train/loss", b"train/step_size_low", b"train/tokens_per_second", b"dev/f1", b"dev/exact_match"):
        assert tag in content


def test_trackers_that_are_not_installed_are_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, key in (("wandb", "wandb_project"), ("mlflow", "mlflow_experiment")):
        monkeypatch.setitem(sys.modules, name, None)
        with refused(ConfigError, "tracker_not_installed", package=name):
            sinks(tmp_path, tensorboard=False, **{key: "mine"})
    assert sinks(tmp_path, tensorboard=False) == []


def test_weights_and_biases_and_mlflow_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against stand-ins with the calls of the real clients that are used."""
    import sys
    from unittest.mock import MagicMock

    wandb, mlflow = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    made = sinks(tmp_path, wandb_project="p", mlflow_experiment="e", tensorboard=False)
    watcher = Watcher(lambda _: None, made)
    watcher(SCORE)
    watcher.close()
    expected = {"dev/exact_match": 0.5, "dev/f1": 0.75, "dev/questions": 8.0}
    wandb.init.assert_called_once_with(project="p", config={"seed": 0})
    wandb.init.return_value.log.assert_called_once_with(expected, step=20)
    wandb.init.return_value.finish.assert_called_once()
    mlflow.set_experiment.assert_called_once_with("e")
    mlflow.log_metrics.assert_called_once_with(expected, step=20)
    mlflow.end_run.assert_called_once()
