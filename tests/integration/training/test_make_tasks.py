"""`regrad tasks` with BM25 on a cluster, from and to an object store, and training on what it made."""

from __future__ import annotations

import pytest

from ray_jobs import index_corpus, make_tasks, meta_train
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import encode_passages
from regrad.data.tasks import read_tasks
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.world import World
from regrad.retrieval.config import IndexConfig
from regrad.settings import builtin_config, load_settings, parse_settings
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.task_files.config import TasksConfig

pytestmark = pytest.mark.usefixtures("local_cluster")


def test_questions_and_an_index_become_tasks_that_training_reads(
    s3: str, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = tmp_path_factory.mktemp("tasks")
    bucket = Storage(f"{s3}/make-tasks")
    bucket.write("corpus.jsonl", encode_passages(held_out_corpus(world)))
    asked = [
        {"id": f"q{i}", "question": item.question, "answers": item.answers, "passage_id": item.passage_id}
        for i, item in enumerate(held_out_questions(world, 60))
    ]
    bucket.write("questions.jsonl", encode_jsonl(asked))
    index_corpus.run(IndexConfig(corpus=f"{bucket.uri}/corpus.jsonl", output=f"{bucket.uri}/index"))
    sections = {
        "questions": {"path": f"{bucket.uri}/questions.jsonl"},
        "passages": {"index": f"{bucket.uri}/index", "k": 2, "gold": "in"},
        "output": f"{bucket.uri}/tasks",
        "dev_fraction": 0.2,
    }
    said = make_tasks.run(parse_settings(TasksConfig, sections, "test"))
    train, dev = (read_tasks(f"{bucket.uri}/tasks/{name}.jsonl") for name in ("train", "dev"))
    assert "gold passages among those of 100.0% of 60" in said
    assert len(train) + len(dev) == 60 and 8 <= len(dev) <= 12
    assert all(len(task.passages) == 2 for task in train)
    gold = {f"questions/{item['id']}": item["passage_id"] for item in asked}
    assert sum(task.passages[0].id == gold[task.id] for task in train) > 0.9 * len(train)
    assert not Storage(f"{bucket.uri}/.tasks.parts").files()

    settings = [f"tasks={bucket.uri}/tasks/train.jsonl", f"dev={bucket.uri}/tasks/dev.jsonl"]
    settings += [f"output={local}/meta-init", "optimizer.steps=2", "cluster.workers=1", "watch.tensorboard=false"]
    trained = meta_train.run(load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), settings))
    assert "2 steps, dev EM" in trained
