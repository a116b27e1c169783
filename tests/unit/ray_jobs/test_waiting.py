"""What a job says while a cluster has no room for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import pytest

from ray_jobs import evaluate, index_corpus, make_tasks
from ray_jobs.waiting import ONE_CPU, waiting_line
from regrad.evaluation.config import EvalConfig
from regrad.retrieval.config import IndexConfig
from regrad.settings import WorkersConfig, builtin_config, load_settings
from regrad.training.task_files.config import TasksConfig


@pytest.mark.parametrize(
    ("needs", "free", "there", "line"),
    [
        ({"CPU": 1.0}, {}, {"CPU": 2.0}, "waiting for 1 CPU: of the cluster's 2, 2 are held by others"),
        ({"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 4.0}, "waiting for 2 CPU: of the cluster's 4, 3 are held by others"),
        (
            {"CPU": 1.0, "GPU": 1.0},
            {"CPU": 8.0},
            {"CPU": 8.0},
            "waiting for 1 GPU, of which the cluster has 0, until a node with it comes",
        ),
        (
            {"CPU": 1.0, "train": 1},
            {"CPU": 2.0},
            {"CPU": 2.0, "train": 8},
            "waiting for 1 train: of the cluster's 8, 8 are held by others",
        ),
        (
            {"CPU": 2.0},
            {"CPU": 2.0},
            {"CPU": 4.0},
            "waiting for a worker with 2 CPU to start",
        ),
    ],
    ids=["all held", "some held", "not there", "of our own", "in pieces, or slow"],
)
def test_the_line_names_what_is_missing_and_who_has_it(
    needs: dict[str, float], free: dict[str, float], there: dict[str, float], line: str
) -> None:
    assert waiting_line(needs, free, there) == line


class Waiting(Exception):
    """Raised in place of waiting."""


@contextmanager
def silent(*_: Any) -> Iterator[Any]:
    yield Mock()


def evaluated(changes: list[str]) -> None:
    config = load_settings(EvalConfig, builtin_config("jobs/eval-lab.yaml"), changes)
    evaluate.run_cells(config, [Mock(questions=3)])


def indexed(changes: list[str]) -> None:
    index_corpus.run(load_settings(IndexConfig, builtin_config("jobs/index-lab.yaml"), changes))


def tasks_made(changes: list[str]) -> None:
    make_tasks.run(load_settings(TasksConfig, builtin_config("jobs/tasks-lab.yaml"), changes))


GPU = WorkersConfig(gpu=True, resources={"train": 1})


@pytest.mark.parametrize(
    ("job", "changes", "needed"),
    [
        (evaluated, ["cluster.gpu=true", "cluster.resources={train: 1}"], GPU),
        (indexed, [], ONE_CPU),
        (indexed, ["shards=2", "cluster.cpus_per_worker=3"], WorkersConfig(gpu=False, cpus_per_worker=3)),
        (tasks_made, ["passages.index=i"], ONE_CPU),
    ],
)
def test_jobs_that_do_not_stream_a_corpus_say_what_they_wait_for_too(
    job: Callable[[list[str]], None], changes: list[str], needed: WorkersConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def wait(config: WorkersConfig) -> None:
        asked.append(config)
        raise Waiting

    for module in (evaluate, index_corpus, make_tasks):
        monkeypatch.setattr(module, "wait_for_room", wait)
        monkeypatch.setattr(module, "cluster", nullcontext)
        for name in ("progress_channel", "progress_bar"):
            monkeypatch.setattr(module, name, silent, raising=False)
        for name in ("require_workers", "check_index", "run_task", "_run"):
            monkeypatch.setattr(module, name, Mock(), raising=False)
    monkeypatch.setattr(index_corpus, "read_passages", lambda uri: iter([]))
    with pytest.raises(Waiting):
        job(changes)
    assert asked == [needed]
