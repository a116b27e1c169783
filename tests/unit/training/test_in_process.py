"""Training without a cluster: the same draws and numbers as the loop has, and the errors that a job has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regrad.data.passages import Passage, encode_passages
from regrad.data.tasks import read_tasks
from regrad.errors import CorpusError, MethodError
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.training.checkpoint import DevScore
from regrad.training.loop import loop_of
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import passage_example
from regrad.training.lora.finetuning import LoraLearner, finetune_in_process
from regrad.training.lora.lora_artifact import CARD, StaticLora, corpus_costs
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.task_plan import TasksInMemory, shape_task
from regrad.training.meta.trainer import MetaLearner, meta_loop, meta_train_in_process
from regrad.training.sampler import Sampler, SampleSource, batches_of
from tests.tools.refusals import refused


def write_tasks(path: Path, people: slice, world: World, prefix: str = "") -> Path:
    records = lab_tasks(world.meta[people], LabConfig(people_per_record=3), 6, seed=3)
    path.write_text("".join(json.dumps({**r, "id": prefix + r["id"]}) + "\n" for r in records))
    return path


@pytest.fixture
def meta_settings(tmp_path: Path, world: World) -> Callable[..., MetaTrainConfig]:
    path = write_tasks(tmp_path / "tasks.jsonl", slice(0, 40), world)

    def make(*extra: str) -> MetaTrainConfig:
        values = [f"tasks={path}", "dev=null", "output=unused", "optimizer.steps=4", "strategy.name=graph", *extra]
        return load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), values)

    return make


@pytest.mark.slow
def test_meta_training_is_the_loops_own(meta_settings: Callable[..., MetaTrainConfig]) -> None:
    config = meta_settings()
    made = meta_train_in_process(config)
    lm = load_language_model(config.model, "cpu")
    engine = PlainEngine(MetaParameters(lm.subspace, config.inner, config.seed), config.optimizer)
    learner = MetaLearner(lm, engine, config, lm.identity())
    tasks, size = read_tasks(config.tasks[0].uri), config.optimizer.batch_size
    drawn = [draw.number for draw in Sampler([SampleSource(len(tasks), f"{config.seed}/0")], size).draws(0, 4 * size)]
    shaped = [shape_task(tasks[n], config.shape, (), config.seed, place) for place, n in enumerate(drawn)]
    batches = [shaped[start : start + size] for start in range(0, 4 * size, size)]
    alone = learner.product(meta_loop(learner, config).run(batches))
    assert torch.equal(made.phi0, alone.phi0)
    assert torch.equal(made.step_sizes, alone.step_sizes)
    assert made.notes["tasks"] == [{"uri": config.tasks[0].uri, "weight": None, "tasks": 6}]
    assert (made.notes["steps"], made.notes["workers"], made.notes["parent"]) == (4, 1, None)


def test_meta_training_goes_on_from_another_start_on_two_domains(
    meta_settings: Callable[..., MetaTrainConfig], tmp_path: Path, world: World
) -> None:
    parent = meta_train_in_process(meta_settings("optimizer.steps=1"))
    parent.save(tmp_path / "parent")
    other = write_tasks(tmp_path / "other.jsonl", slice(40, 80), world, "other-")
    sources = f"tasks=[{tmp_path}/tasks.jsonl,{{uri: {other}, weight: 18}}]"
    made = meta_train_in_process(meta_settings(sources, f"start_from={tmp_path}/parent"))
    assert made.notes["parent"] == parent.fingerprint
    assert not torch.equal(made.phi0, parent.phi0)
    assert [source["weight"] for source in made.notes["tasks"]] == [None, 18.0]


def test_the_best_by_dev_f1_is_the_result(
    meta_settings: Callable[..., MetaTrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: World
) -> None:
    dev = write_tasks(tmp_path / "dev.jsonl", slice(80, 90), world)
    config = meta_settings(f"dev={dev}", "scoring.every=1")
    found = iter((0.1, 0.9, 0.3, 0.2))

    def scored(self: MetaLearner, tasks: object, step: int) -> DevScore:
        return DevScore(step, {"exact_match": 0.0, "f1": next(found), "questions": 1})

    monkeypatch.setattr(MetaLearner, "score", scored)
    assert meta_train_in_process(config).notes["steps"] == 2


def test_bad_tasks_end_the_run_or_are_left_out(meta_settings: Callable[..., MetaTrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    first = path.read_text().splitlines()[0]
    with path.open("a") as file:
        file.write(f"{first}\nno json\n")
    with refused(CorpusError, "bad_task", place=f"{path} line 8", bad=2):
        meta_train_in_process(meta_settings())
    made = meta_train_in_process(meta_settings("shape.bad_tasks=skip", "optimizer.steps=1"))
    assert made.notes["tasks"][0]["tasks"] == 6, "the one that is twice is there once"
    path.write_text(f"{first}\n{first}\n")
    with refused(CorpusError, "bad_task", place=f"{path} line 2", bad=1):
        meta_train_in_process(meta_settings())
    path.write_text("no json\n")
    with refused(CorpusError, "no_tasks", uri=str(path)):
        meta_train_in_process(meta_settings("shape.bad_tasks=skip"))


def test_epochs_are_steps_and_distractors_are_drawn_by_the_seed(meta_settings: Callable[..., MetaTrainConfig]) -> None:
    assert meta_train_in_process(meta_settings("optimizer.epochs=1", "optimizer.batch_size=2")).notes["steps"] == 3
    mixed = [TasksInMemory.read(meta_settings("shape.distractor_probability=1")) for _ in range(2)]
    first, again = (list(tasks.steps()) for tasks in mixed)
    assert first == again
    assert all(len(task.passages) > 3 for tasks in first for task in tasks)


def finetune_settings(folder: Path, *extra: str) -> FinetuneConfig:
    values = [f"corpus={folder}/corpus.jsonl", "output=unused", "optimizer.epochs=null", "optimizer.steps=3", *extra]
    return load_settings(FinetuneConfig, builtin_config("jobs/finetune-lab.yaml"), values)


@pytest.mark.slow
def test_fine_tuning_is_the_tuners_own_and_goes_on_from_what_it_made(passages: list[Passage], tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(passages[:8]))
    config = finetune_settings(tmp_path)
    made = finetune_in_process(config)
    lm = load_language_model(config.model, "cpu")
    examples = [passage_example(lm, passage) for passage in passages[:8]]
    alone = LoraLearner(lm, config)
    state = loop_of(alone, config, len(examples)).run(batches_of(examples, config))
    assert torch.equal(made.values, alone.values)
    assert made.notes["losses"] == pytest.approx(state.losses, abs=1e-6)
    assert (made.notes["examples"], made.notes["parent"]) == (8, None)
    made.save(tmp_path / "first")
    second = finetune_in_process(finetune_settings(tmp_path, f"start_from={tmp_path}/first"))
    assert second.notes["parent"] == made.digest
    assert second.notes["losses"][0] < made.notes["losses"][0], "it begins with what the first one knows"


def test_what_a_lora_on_passages_costs_a_passage_is_known_and_one_on_questions_costs_none(
    passages: list[Passage], tmp_path: Path, world: World
) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(passages[:8]))
    made = finetune_in_process(finetune_settings(tmp_path))
    made.save(tmp_path / "cpt")
    costs = corpus_costs(tmp_path / "cpt")
    assert costs is not None and costs.preparation_ms is not None
    assert 0 < costs.preparation_ms * 8 == pytest.approx(1e3 * made.notes["seconds"])
    assert costs.storage_bytes * 8 == 4 * len(made.values)
    asked = f"tasks={write_tasks(tmp_path / 'tasks.jsonl', slice(0, 6), world)}"
    values = [asked, "output=unused", "optimizer.steps=1"]
    config = load_settings(FinetuneConfig, builtin_config("jobs/finetune-questions-lab.yaml"), values)
    finetune_in_process(config).save(tmp_path / "ft-direct")
    assert corpus_costs(tmp_path / "ft-direct") is None
    card = json.loads((tmp_path / "cpt" / CARD).read_text())
    (tmp_path / "cpt" / CARD).write_text(json.dumps({**card, "notes": {**card["notes"], "examples": 0}}))
    with refused(MethodError, "adapter_damaged", uri=str(tmp_path / "cpt")):
        corpus_costs(tmp_path / "cpt")


def test_an_adapter_of_another_model_or_shape_is_no_start(
    passages: list[Passage], tmp_path: Path, meta_init: MetaInit
) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(passages[:2]))
    made = finetune_in_process(finetune_settings(tmp_path, "optimizer.steps=1"))
    made.save(tmp_path / "first")
    with refused(MethodError, "adapter_of_another_subspace"):
        finetune_in_process(finetune_settings(tmp_path, f"start_from={tmp_path}/first", "model.subspace.rank=3"))
    foreign = StaticLora(made.model, "f" * 64, made.subspace, made.values)
    foreign.save(tmp_path / "foreign")
    with refused(MethodError, "adapter_of_another_base", found="f" * 16):
        finetune_in_process(finetune_settings(tmp_path, f"start_from={tmp_path}/foreign"))
