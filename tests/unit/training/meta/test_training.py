"""The loop in one process: parameters, schedules, checkpoints and skipped steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.tasks import Task
from regrad.errors import MetaInitError, TrainingError
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent, StepReport
from regrad.training.checkpoint import DevScore, TrainCheckpoint, TrainState, load_train_checkpoint
from regrad.training.loop import Loop
from regrad.training.meta.config import InnerConfig, MetaTrainConfig, OptimizerConfig
from regrad.training.meta.objective import MetaGradient
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.task_plan import TasksInMemory
from regrad.training.meta.trainer import META_INIT, MetaLearner, meta_loop
from tests.tools.refusals import refused, refused_settings


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("changes", "problem", "key", "near"),
    [
        ({"inner": {"steps": 2}, "strategy": {"name": "hvp"}}, "steps_need_graph", "", ""),
        ({"strategy": {"name": "graph", "activation_checkpointing": True}}, "checkpointing_unsupported", "", ""),
        ({"optimizer": {"zero_stage": 3}}, "sharding_unsupported", "", ""),
        ({"tasks": []}, "too_short", "tasks", ""),
        ({"optimizer": {"lr": math.inf}}, "finite_number", "optimizer.lr", ""),
        ({"optimizer": {"betas": [2, 3]}}, "less_than", "optimizer.betas.0", ""),
        ({"scoring": {"gamma": math.nan}}, "finite_number", "scoring.gamma", ""),
        ({"strateg": {}}, "extra_forbidden", "strateg", "strategy"),
        (
            {"shape": {"distractor_probabilty": 1}},
            "extra_forbidden",
            "shape.distractor_probabilty",
            "shape.distractor_probability",
        ),
        ({"tasks": [{"uri": "a", "wieght": 1}]}, "extra_forbidden", "tasks.0.wieght", "tasks.0.weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tiny: LanguageModel, changes: dict[str, Any], problem: str, key: str, near: str
) -> None:
    with refused_settings(problem, key, near):
        settings(tiny, **changes)


def test_tasks_may_be_one_place_or_weighted_sources(tiny: LanguageModel) -> None:
    assert [source.weight for source in settings(tiny, tasks="s3://b/t").tasks] == [None]
    mixed = settings(tiny, tasks=["s3://b/general", {"uri": "s3://b/law", "weight": 2}]).tasks
    assert [(source.uri, source.weight) for source in mixed] == [("s3://b/general", None), ("s3://b/law", 2.0)]


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
