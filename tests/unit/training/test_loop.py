"""The loop that all training shares, on a network with parameters of its own: nothing here knows of MetaInits."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regrad.errors import TrainingError
from regrad.training.callbacks import Best, Silent, StepReport
from regrad.training.checkpoint import CARD, DevScore, TrainCheckpoint, TrainState, load_train_checkpoint
from regrad.training.config import CheckpointConfig, TrackingConfig
from regrad.training.loop import Loop, Scoring, StepResult, Unchanged, resume
from tests.tools.patience import completed
from tests.tools.refusals import refused
from tests.tools.regression import SCHEDULE, Line, LineLearner, Point, batches, newest, train

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    undisturbed, expected = train(whole)
    command = [sys.executable, "-m", "tests.tools.regression", str(killed), "20"]
    died = completed(command, 60, cwd=ROOT)
    assert died.returncode == -signal.SIGKILL
    assert newest(killed) == killed / "015", "the one that was being written is not there"
    learner, state = train(killed)
    assert (state.losses, state.step) == (expected.losses, 40)
    for name, tensor in undisturbed.tensors().items():
        assert torch.equal(learner.tensors()[name], tensor), name
    assert state.losses[-1] < 0.05 * state.losses[0], "it learns"
    made = load_file(killed / "040" / "line" / "line.safetensors")
    assert torch.equal(made["weights"], learner.layer.weight), "the product is usable by itself"


def checkpoint(learner: LineLearner, kind: str = "regression") -> TrainCheckpoint:
    state = TrainState(3, [2.0, 1.0], [2], [DevScore(3, {"f1": 0.5, "questions": 7})], {"strategy": "graph"}, 1.5)
    return TrainCheckpoint(kind, "base", state, learner.tensors(), "line", learner.product(state))


def test_a_checkpoint_gives_back_what_was_saved_and_is_not_taken_for_another(tmp_path: Path) -> None:
    learner = LineLearner()
    checkpoint(learner).save(tmp_path / "a")
    state, tensors = load_train_checkpoint(tmp_path / "a", "regression", "base")
    assert state == checkpoint(learner).state
    assert tensors.keys() == learner.tensors().keys()
    with refused(TrainingError, "checkpoint_of_another_kind", expected="fine-tuning", found="regression"):
        load_train_checkpoint(tmp_path / "a", "fine-tuning", "base")
    with refused(TrainingError, "checkpoint_of_another_base", uri=str(tmp_path / "a")):
        load_train_checkpoint(tmp_path / "a", "regression", "other")
    with refused(TrainingError, "checkpoint_of_another_base", uri=str(tmp_path / "a")):
        resume(learner, nullcontext(tmp_path / "a"))
    with refused(TrainingError, "checkpoint_damaged", uri=str(tmp_path / "b")):
        load_train_checkpoint(tmp_path / "b", "regression", "base")


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    checkpoint(LineLearner()).save(tmp_path / "a")
    file = tmp_path / "a" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with refused(TrainingError, "checkpoint_damaged", uri=str(tmp_path / "a")):
        load_train_checkpoint(tmp_path / "a", "regression", "base")
    card = tmp_path / "a" / CARD
    for broken in ("{", "[]", json.dumps({**json.loads(card.read_text()), "state": {"step": 1}})):
        card.write_text(broken)
        with refused(TrainingError, "checkpoint_damaged"):
            load_train_checkpoint(tmp_path / "a", "regression", "base")


class Told(Silent):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.reports: list[StepReport] = []

    def note(self, text: str) -> None:
        self.events.append(text)

    def report(self, report: StepReport) -> None:
        self.reports.append(report)

    def scored(self, score: DevScore) -> None:
        self.events.append(f"scored {score.step}")

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        self.events.append(f"checkpoint {checkpoint.state.step}")


def test_listeners_are_told_at_the_steps_that_the_settings_say() -> None:
    schedule, told = SCHEDULE.model_copy(update={"steps": 7}), Told()
    scoring = Scoring(lambda step: DevScore(step, {"loss": 1 / step}), every=3)
    loop = Loop(LineLearner(), schedule, CheckpointConfig(every=5), TrackingConfig(every=4), told, scoring)
    state = loop.run(batches(steps=schedule.steps))
    scores = ["scored 3", "checkpoint 3", "checkpoint 5", "scored 6", "checkpoint 6", "scored 7", "checkpoint 7"]
    assert told.events == ["4 points a step", *scores]
    assert [report.step for report in told.reports] == [4, 7]
    assert told.reports[0].loss == pytest.approx(sum(state.losses[:4]) / 4)
    assert told.reports[0].rates["points"] > 0 and "bias" in told.reports[0].numbers
    assert 0 < state.seconds < told.reports[-1].seconds + 1


def test_the_best_by_score_is_kept_and_later_ones_that_are_worse_are_not() -> None:
    schedule, best = SCHEDULE.model_copy(update={"steps": 4}), Best("f1")
    found = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.9}
    scoring = Scoring(lambda step: DevScore(step, {"f1": found[step]}), every=1)
    learner = LineLearner()
    Loop(learner, schedule, CheckpointConfig(), TrackingConfig(), best, scoring).run(batches(steps=schedule.steps))
    assert isinstance(best.product, Line)
    assert not torch.equal(best.product.weights, learner.layer.weight), "that of step 2"


def test_steps_that_are_not_finite_are_skipped_until_there_are_too_many_in_a_row() -> None:
    good = next(batches())
    bad = [(x, math.nan) for x, _ in good]
    schedule, told, learner = SCHEDULE.model_copy(update={"steps": 6}), Told(), LineLearner()
    loop = Loop(learner, schedule, CheckpointConfig(every=2), TrackingConfig(), told)
    with refused(TrainingError, "not_finite", step=5, times=2):
        loop.run([good, bad, good, bad, bad, good])
    assert "step 2 is skipped: its loss or gradient is not finite" in told.events
    assert bool(torch.isfinite(learner.layer.weight).all())
    assert [event for event in told.events if event.startswith("checkpoint")][-1] == "checkpoint 5"


def test_a_run_that_stops_as_too_much_was_not_finite_keeps_no_state_that_is_not() -> None:
    class Diverged(LineLearner):
        def step(self, batch: Sequence[Point], factor: float) -> StepResult:
            found = super().step(batch, factor)
            self.layer.weight.data[:] = math.inf
            return found

    told = Told()
    loop = Loop(Diverged(), SCHEDULE.model_copy(update={"steps": 6}), CheckpointConfig(), TrackingConfig(), told)
    with refused(TrainingError, "not_finite", step=3, times=2):
        loop.run(batches(steps=6))
    assert not [event for event in told.events if event.startswith("checkpoint")]


@pytest.mark.parametrize("at", [0, 2, 3, 4])
@pytest.mark.parametrize(
    "error", [TrainingError("no", code="nothing_found"), RuntimeError("no")], ids=["ours", "other"]
)
def test_a_step_that_fails_before_it_changes_anything_keeps_the_state_before_it(at: int, error: Exception) -> None:
    class Failing(LineLearner):
        taken = 0

        def step(self, batch: Sequence[Point], factor: float) -> StepResult:
            if self.taken == at:
                raise Unchanged(error)
            self.taken += 1
            return super().step(batch, factor)

    told = Told()
    loop = Loop(Failing(), SCHEDULE.model_copy(update={"steps": 6}), CheckpointConfig(every=2), TrackingConfig(), told)
    with pytest.raises(type(error), match="no") as raised:
        loop.run(batches(steps=6))
    assert raised.value is error
    kept = [event for event in told.events if event.startswith("checkpoint")]
    assert kept == [f"checkpoint {step}" for step in (2, 3, 4) if step == at or (step < at and step % 2 == 0)]


def test_batches_that_end_too_early_are_an_error() -> None:
    loop = Loop(LineLearner(), SCHEDULE.model_copy(update={"steps": 6}), CheckpointConfig(), TrackingConfig())
    with refused(TrainingError, "batches_ended", step=2, steps=6):
        loop.run(list(batches())[:2])
