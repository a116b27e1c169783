"""In which precision a run trains, where it was left to the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.tasks import Task
from regrad.errors import ModelError
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.models import precision
from regrad.models.loading import LanguageModel
from regrad.training.loop import loop_of
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import passage_example
from regrad.training.lora.finetuning import LoraLearner
from regrad.training.sampler import batches_of
from tests.tools.refusals import refused
from tests.unit.training.meta.test_training import Keeper, Run, load, settings, steps_of

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
SLOW = 'print(\'{"error": 0.004, "speedup": 0.3}\')'
FAST = 'print(\'{"error": 0.004, "speedup": 3}\')'


@pytest.fixture(scope="module")
def tasks(world: World) -> list[Task]:
    return [
        Task.from_record(record) for record in lab_tasks(world.meta[:20], LabConfig(people_per_record=3), 3, seed=3)
    ]


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """Whether each step ran in bf16, in a cache of its own; nothing is really computed in bf16, which may kill."""
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path / "cache"))
    asked: list[bool] = []

    def note(lm: LanguageModel, half: bool) -> torch.autocast:
        asked.append(half)
        return torch.autocast("cpu", enabled=False)

    monkeypatch.setattr("regrad.training.meta.trainer.autocast", note)
    monkeypatch.setattr("regrad.training.lora.batched.autocast", note)
    return asked


def probe(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(precision, "PROBE", (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "half", "said"), [(DIES, False, "SIGILL"), (SLOW, False, "0.3 times"), (FAST, True, "3 times")]
)
def test_auto_takes_bf16_where_it_is_right_and_faster_and_says_which_it_took(
    monkeypatch: pytest.MonkeyPatch,
    tiny: LanguageModel,
    tasks: list[Task],
    products: list[bool],
    code: str,
    half: bool,
    said: str,
) -> None:
    probe(monkeypatch, code)
    config, keeper = settings(tiny, optimizer={"steps": 1, "batch_size": 2, "precision": "auto"}), Keeper()
    state = Run(tiny, config, keeper).loop.run(steps_of(tasks, config))
    assert set(products) == {half}
    assert keeper.notes[0].startswith(f"precision {'bf16' if half else 'float32'}: ") and said in keeper.notes[0]
    assert state.decided["precision"] == ("bf16" if half else "model")


def test_bf16_by_name_is_refused_where_it_kills_and_taken_where_it_is_only_slow(
    monkeypatch: pytest.MonkeyPatch, tiny: LanguageModel, tasks: list[Task], products: list[bool]
) -> None:
    config = settings(tiny, optimizer={"steps": 1, "batch_size": 2, "precision": "bf16"})
    probe(monkeypatch, DIES)
    with refused(ModelError, "no_bf16", setting="optimizer.precision"):
        Run(tiny, config).loop.run(steps_of(tasks, config))
    assert not products
    probe(monkeypatch, SLOW)
    Run(tiny, config).loop.run(steps_of(tasks, config))
    assert set(products) == {True}


def test_a_resumed_run_keeps_what_auto_took_and_stops_where_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tiny: LanguageModel, tasks: list[Task], products: list[bool], tmp_path: Path
) -> None:
    probe(monkeypatch, FAST)
    config = settings(tiny, optimizer={"steps": 4, "batch_size": 2, "precision": "auto"}, checkpoints={"every": 2})
    Run(tiny, config, Keeper(tmp_path)).loop.run(steps_of(tasks, config))
    probe(monkeypatch, SLOW)
    products.clear()
    state, tensors = load(tmp_path / "2", tiny)
    run = Run(tiny, config)
    run.learner.load(tensors)
    run.loop.run(steps_of(tasks, config, 2), state)
    assert set(products) == {True}
    probe(monkeypatch, DIES)
    state, _ = load(tmp_path / "2", tiny)
    with refused(ModelError, "no_bf16"):
        Run(tiny, config).loop.run(steps_of(tasks, config, 2), state)


@pytest.mark.parametrize(("code", "half"), [(SLOW, False), (FAST, True)])
def test_fine_tuning_takes_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    tiny: LanguageModel,
    passages: list[Passage],
    products: list[bool],
    code: str,
    half: bool,
) -> None:
    probe(monkeypatch, code)
    optimizer = {"steps": 2, "batch_size": 2, "precision": "auto"}
    config = FinetuneConfig.model_validate(
        {"model": tiny.config, "objective": "passages", "corpus": "c", "output": "o", "optimizer": optimizer}
    )
    examples = [passage_example(tiny, passage) for passage in passages[:4]]
    learner = LoraLearner(tiny, config)
    state = loop_of(learner, config, len(examples)).run(batches_of(examples, config))
    assert set(products) == {half}
    assert state.decided["precision"] == ("bf16" if half else "model")
    assert learner.values.dtype == torch.float32
